"""One participant of a run without a server."""

from dataclasses import dataclass

from omegaconf import DictConfig

from fedshare.identity.identity import Identity
from fedshare.identity.signing import Signer
from fedshare.runs import RunFolder
from fedshare.simulation import Population


@dataclass(frozen=True)
class Part:
    """What a peer takes part in, and as whom."""

    config: DictConfig
    population: Population  # of all; its strategy is that of a simulation
    folder: RunFolder
    me: int
    run: bytes  # the run's name, 32 bytes: equal for peers with equal configs and initial models
    identity: Identity | None
    signer: Signer
