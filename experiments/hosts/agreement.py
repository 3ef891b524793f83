"""The config that a server sends to its clients, the part that all must share, and what a client builds from it.

The keys of a run config read here: ``overrides`` (hydra's, as on the command line) or ``config`` (the resolved
config as YAML, complete).
"""

import hashlib
import shlex
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError, first_line
from fedshare.experiments.config import build, compose, trust
from fedshare.experiments.config.environment import unfilled
from fedshare.experiments.config.schema import SHARED
from fedshare.experiments.config.trust import Trust
from fedshare.identity import marks
from fedshare.simulation import Population

RunConfig = Mapping[str, Any]


def config_of(run_config: RunConfig) -> DictConfig:
    """Return the resolved config of a run."""
    if text := str(run_config.get("config", "")):
        return DictConfig(OmegaConf.create(text))
    return compose.resolved(overrides_of(run_config))


def overrides_of(run_config: RunConfig) -> list[str]:
    text = str(run_config.get("overrides", ""))
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"overrides={text!r}: {error}") from None


def told(config: DictConfig) -> str:
    """Return the config sent to clients, without the keys that only the server needs.

    Raises UserError if it contains interpolations, which clients never resolve for a server.
    """
    shared = OmegaConf.masked_copy(config, [*SHARED, "weights", "device"])
    if found := unfilled(OmegaConf.to_container(shared)):
        here = "say it, or leave it to each host: --data, --weights, $FEDSHARE_DATA"
        raise UserError(f"{found[0]}={found[1]}: a client does not read its environment for a server: {here}")
    return OmegaConf.to_yaml(shared)


def agreed(config: DictConfig) -> str:
    """Return, as text, what all participants in a run must share."""
    shared = OmegaConf.masked_copy(config, list(SHARED))
    if "sources" in shared.partition:  # the sources of a client's own data are up to its host
        shared.partition.sources, shared.data.load = [], None
    return OmegaConf.to_yaml(shared, sort_keys=True)


def digest(config: DictConfig) -> str:
    """SHA-256, in hex, by which two participants check that they agree."""
    return hashlib.sha256(agreed(config).encode()).hexdigest()


def admit(run_config: Any, own: DictConfig | None, trusted: Trust, whose: str) -> None:
    """Check the server's config on a client, before it is used.

    Raises UserError if it differs from the config that the client requires, its `own`, or names code that is not
    allowed. A config marked by a server of the same user may name any.
    """
    try:
        text = str(run_config["config"])
        config = DictConfig(OmegaConf.create(text))
        if lacking := [key for key in SHARED if key not in config]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        trust.check_filled(config, whose)
        theirs = digest(config)
    except UserError:
        raise
    except Exception as error:  # of YAML's and OmegaConf's types
        raise UserError(f"{whose} cannot be read: {first_line(error)}") from error
    if own is not None and theirs != (ours := digest(own)):
        raise UserError(f"{whose} has the digest {theirs[:12]}, and the one that this client insists on {ours[:12]}")
    if not marks.is_marked(text, [str(run_config.get("mark", ""))]):
        trust.check(config, trusted, whose)


def population(run_config: RunConfig, node_config: RunConfig) -> tuple[str, Population]:
    """Return, on a client, what it must share with the others, and all participants.

    Specific to the client are ``device``, its ``data`` with partition=own, and ``weights`` if the server's path does
    not exist here.
    """
    config = config_of(run_config)
    told(config)
    text = agreed(config)
    config.device = str(node_config.get("device", "cpu"))
    config.weights = node_config.get("weights", config.weights)
    own = node_config.get("data")
    if own is None and "sources" in config.partition:
        raise UserError("partition=own: the data of this host are required: --data FILE, or data in the node config")
    return text, build.population_of(config, None if own is None else str(own))
