"""The part of a server's run config besides the config.

Its keys: ``folder``, ``resume``, ``clients`` (how many to wait for), ``wait`` (seconds), ``slack`` (MB).
"""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from fedshare.errors import UserError
from fedshare.experiments.config import compose
from fedshare.experiments.hosts.agreement import RunConfig, overrides_of


@dataclass(frozen=True)
class Order:
    """What a server is asked to do, besides the config."""

    folder: Path
    resume: bool  # resume the run in the folder, if there is one
    clients: int  # how many to wait for before the first round; 0: all
    wait: float  # seconds to wait for them
    slack: int  # extra bytes that an answer may have above twice its expected size


def order_of(run_config: RunConfig, config: DictConfig) -> Order:
    folder = str(run_config.get("folder") or compose.folder(overrides_of(run_config)) or "")
    try:
        clients, wait = int(run_config.get("clients", 0)), float(run_config.get("wait", 600.0))
        slack = int(float(run_config.get("slack", 1.0)) * 1e6)
    except (ValueError, OverflowError) as error:
        raise UserError(f"run config: clients, wait and slack are numbers: {error}") from None
    return Order(Path(folder or _new_folder(config)), bool(run_config.get("resume", False)), clients, wait, slack)


def _new_folder(config: DictConfig) -> str:
    path = time.strftime(f"runs/%Y-%m-%d/%H-%M-%S-{config.name}-{config.seed}")
    names = itertools.chain([path], (f"{path}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not Path(name).exists())
