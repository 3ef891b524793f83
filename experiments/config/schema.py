"""The roots of configs: their keys, their types and their ranges."""

import math
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from fedshare.errors import UserError


@dataclass
class Root:
    """Types only: the values and what they mean stand in conf/config.yaml."""

    peft: Any = MISSING
    strategy: Any = MISSING
    data: Any = MISSING
    partition: Any = MISSING
    model: Any = MISSING
    client: Any = MISSING
    schedule: Any = MISSING
    task: Any = MISSING
    attack: Any = MISSING
    tracking: Any = MISSING
    name: str = MISSING
    folder: str = MISSING
    rounds: int = MISSING
    clients_per_round: int | None = MISSING
    seed: int = MISSING
    train_examples: int | None = MISSING
    validation: float = MISSING
    unseen: int = MISSING
    best: str | None = MISSING
    patience: int | None = MISSING
    on_client_error: str = MISSING
    on_weakened: str = MISSING
    max_norm_ratio: float | None = MISSING
    weights: str | None = MISSING
    evaluate_every: int = MISSING
    evaluate_first: bool = MISSING
    checkpoint_every: int = MISSING
    workers: int | None = MISSING
    device: str = MISSING
    timeout: float = MISSING
    deadline_factor: float | None = MISSING
    deadline_floor: float = MISSING
    suspend_after: int | None = MISSING
    quorum: float = MISSING


@dataclass
class Pretraining:
    """The same for conf/pretrain.yaml."""

    data: Any = MISSING
    model: Any = MISSING
    task: Any = MISSING
    weights: str | None = MISSING
    partition: Any = None
    optimizer: Any = MISSING
    augment: Any = MISSING
    name: str = MISSING
    folder: str = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    warmup_epochs: float = MISSING
    label_smoothing: float = MISSING
    precision: str = MISSING
    test_every: int = MISSING
    checkpoint_every: int = MISSING
    threads: int | None = MISSING
    device: str = MISSING


@dataclass
class Matrix:
    """The same for conf/matrix.yaml."""

    base: list[str] = MISSING
    attacks: dict[str, Any] = MISSING
    defences: dict[str, Any] = MISSING
    partitions: dict[str, Any] = MISSING
    seeds: list[int] = MISSING
    reference: list[str] | None = MISSING
    workers: int | None = MISSING
    timeout: float = MISSING
    name: str | None = MISSING
    folder: str = MISSING


_RANGES = {
    "rounds": (1, math.inf),
    "clients_per_round": (1, math.inf),
    "evaluate_every": (0, math.inf),
    "checkpoint_every": (1, math.inf),
    "workers": (0, math.inf),
    "timeout": (1, 86400),  # a day
    "deadline_factor": (1, math.inf),
    "deadline_floor": (0, 86400),
    "suspend_after": (1, math.inf),
    "unseen": (0, math.inf),
    "patience": (1, math.inf),
    "max_norm_ratio": (1, math.inf),
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "warmup_epochs": (0, math.inf),
    "label_smoothing": (0, 1),
    "test_every": (1, math.inf),
    "threads": (1, 1024),
}


def check_ranges(config: Any) -> None:
    for key, (least, most) in _RANGES.items():
        if (value := config.get(key)) is not None and not least <= value <= most:
            allowed = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"{key}={value}: must be {allowed}")
    if not 0 <= config.get("validation", 0.0) < 1:
        raise UserError(f"validation={config.validation}: must be at least 0 and below 1")
    if not 0 < config.get("quorum", 1.0) <= 1:
        raise UserError(f"quorum={config.quorum}: must be above 0 and at most 1")
    if config.get("on_client_error", "drop") not in ("halt", "drop"):
        raise UserError(f"on_client_error={config.on_client_error}: must be halt or drop")
    if config.get("on_weakened", "note") not in ("halt", "note"):
        raise UserError(f"on_weakened={config.on_weakened}: must be halt or note")


def check_complete(config: Any, root: type[Root] | type[Pretraining] = Root) -> None:
    """Raise ValueError where a stored config lacks a key of its root."""
    if lacking := [key for key in root.__dataclass_fields__ if key not in config and key != "folder"]:
        raise ValueError(f"it lacks {', '.join(lacking)}")


def register() -> None:
    ConfigStore.instance().store(name="root", node=Root)
    ConfigStore.instance().store(name="pretraining", node=Pretraining)
    ConfigStore.instance().store(name="matrices", node=Matrix)
