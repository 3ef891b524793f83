"""The root of every config: its keys, their types and their ranges."""

import math
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


_RANGES = {
    "rounds": (1, math.inf),
    "clients_per_round": (1, math.inf),
    "evaluate_every": (0, math.inf),
    "checkpoint_every": (1, math.inf),
    "workers": (0, math.inf),
    "timeout": (1, 86400),  # a day
}


def check_ranges(config: Any) -> None:
    for key, (least, most) in _RANGES.items():
        if config[key] is not None and not least <= config[key] <= most:
            allowed = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"{key}={config[key]}: must be {allowed}")


def check_complete(config: Any) -> None:
    """Raise ValueError where a run's config lacks a key of its root."""
    if lacking := [key for key in Root.__dataclass_fields__ if key not in config and key != "folder"]:
        raise ValueError(f"it lacks {', '.join(lacking)}")


def register() -> None:
    ConfigStore.instance().store(name="root", node=Root)
