"""The root of every config: its keys, their types and their ranges."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from fedshare.errors import UserError


@dataclass
class Root:
    """Types only: the values and what they mean stand in conf/config.yaml."""

    strategy: Any = MISSING
    data: Any = MISSING
    partition: Any = MISSING
    model: Any = MISSING
    client: Any = MISSING
    tracking: Any = MISSING
    name: str = MISSING
    folder: str = MISSING
    rounds: int = MISSING
    clients_per_round: int | None = MISSING
    seed: int = MISSING
    evaluate_every: int = MISSING
    checkpoint_every: int = MISSING
    workers: int | None = MISSING
    device: str = MISSING
    timeout: float = MISSING


_LEAST = {"rounds": 1, "clients_per_round": 1, "evaluate_every": 0, "checkpoint_every": 1, "workers": 0, "timeout": 1}


def check_ranges(config: Any) -> None:
    for key, least in _LEAST.items():
        if config[key] is not None and config[key] < least:
            raise UserError(f"{key}={config[key]}: must be at least {least}")


def register() -> None:
    ConfigStore.instance().store(name="root", node=Root)
