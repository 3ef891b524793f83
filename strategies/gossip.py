"""Decentralised SGD: peers train their models, and average them with their neighbours'.

Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, algorithm 1; with several
steps between two exchanges, as in local SGD.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg
from fedshare.tensors import Tensors, mean


@dataclass(frozen=True)
class Gossip(FedAvg):
    """With a server, which knows no mixing weights, all uploads count equally."""

    weighted: ClassVar[bool] = False  # not a field here: the graph's weights count, not numbers of examples

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        return {"params": mixed(uploads, "params")}


def mixed(uploads: dict[int, Payload], group: str) -> Tensors:
    """Return the average of a group of tensors by the graph's weights, or, with a server, by equal ones."""
    ordered = [upload for _, upload in sorted(uploads.items())]
    weights = [1.0 if upload.weight is None else upload.weight for upload in ordered]
    return mean([upload.tensors[group] for upload in ordered], weights)
