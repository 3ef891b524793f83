"""The root configs: the type and range of each key, who must agree on it, and what it affects.

Every list of keys is derived from here.
"""
# ruff: noqa: RUF009  # `key` gives a dataclass field

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from fedshare.errors import UserError
from fedshare.experiments.config.keys import ALWAYS, Choice, Effect, Range, about, key, nullable

_COUNT = Range(1)
_WORKERS = Range(0)
_SECONDS = Range(1, 86400)  # a day


@dataclass
class Root:
    """Keys of a run; conf/config.yaml documents them and holds their values."""

    peft: Any = key(shared=True, before={"_target_": "fedshare.peft.Full"})
    strategy: Any = key(shared=True)
    data: Any = key(shared=True)
    partition: Any = key(shared=True)
    model: Any = key(shared=True)
    client: Any = key(shared=True)
    schedule: Any = key(shared=True, before={"_target_": "fedshare.training.rates.Constant"})
    task: Any = key(shared=True, before={"_target_": "fedshare.tasks.Classification"})
    attack: Any = key(shared=True, before={"_target_": "fedshare.attacks.Attack", "adversaries": 0})
    peers: Any = key(shared=True, since=(0, 2), before={"_target_": "fedshare.peers.Served"})
    links: Any = key(since=(0, 2), before={"_target_": "fedshare.links.Links"})
    addresses: Any = key(effect=Effect.NOTHING, may_change=True, since=(0, 2), before=None)
    tracking: Any = key(effect=Effect.NOTHING, may_change=True)
    name: str = key(effect=Effect.NOTHING)
    folder: str = MISSING
    rounds: int = key(_COUNT, Effect.LENGTH, may_change=True)
    clients_per_round: int | None = key(_COUNT)
    seed: int = key(shared=True)
    train_examples: int | None = key(shared=True, before=None)
    validation: float = key(Range(0, 1, below=True), shared=True, before=0.0)
    unseen: int = key(Range(0), shared=True, before=0)
    best: str | None = key(before=None)
    patience: int | None = key(_COUNT, before=None)
    on_client_error: str = key(Choice(("halt", "drop")), before="halt")
    on_weakened: str = key(Choice(("halt", "note")), since=(0, 2), before="note")
    max_norm_ratio: float | None = key(Range(1), since=(0, 2), before=None)
    # Weights may be in other places on each host: the digest of the tensors taken from them checks that they agree.
    weights: str | None = key(before=None)
    evaluate_every: int = key(Range(0), Effect.LENGTH)
    evaluate_first: bool = key(before=False)
    checkpoint_every: int = key(_COUNT, Effect.NOTHING)
    workers: int | None = key(_WORKERS, Effect.NOTHING)
    cluster: Any = key(
        effect=Effect.NOTHING,
        may_change=True,
        since=(0, 2),
        before={"_target_": "fedshare.simulation.cluster.Here"},
    )
    engine: str = key(Choice(("auto", "plain", "batched")), since=(0, 2), before="plain")
    device: str = key(may_change=True)
    timeout: float = key(_SECONDS, Effect.WAITING, may_change=True)
    deadline_factor: float | None = key(Range(1), Effect.WAITING, may_change=True, since=(0, 2), before=None)
    deadline_floor: float = key(Range(0, 86400), Effect.WAITING, may_change=True, since=(0, 2), before=0.0)
    suspend_after: int | None = key(_COUNT, Effect.LATENESS, may_change=True, since=(0, 2), before=None)
    quorum: float = key(Range(0, 1, above=True), Effect.LATENESS, may_change=True, since=(0, 2), before=1.0)


@dataclass
class Pretraining:
    """Keys of pretraining; conf/pretrain.yaml documents them and holds their values."""

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
    epochs: int = key(_COUNT)
    batch_size: int = key(_COUNT)
    warmup_epochs: float = key(Range(0))
    label_smoothing: float = key(Range(0, 1))
    precision: str = MISSING
    test_every: int = key(_COUNT)
    checkpoint_every: int = key(_COUNT)
    threads: int | None = key(Range(1, 1024))
    device: str = MISSING


@dataclass
class Matrix:
    """Keys of a matrix; conf/matrix.yaml documents them and holds their values."""

    base: list[str] = MISSING
    attacks: dict[str, Any] = MISSING
    defences: dict[str, Any] = MISSING
    partitions: dict[str, Any] = MISSING
    seeds: list[int] = MISSING
    reference: list[str] | None = MISSING
    workers: int | None = key(_WORKERS)
    timeout: float = key(_SECONDS)
    name: str | None = MISSING
    folder: str = MISSING


def _of(*effects: Effect) -> tuple[str, ...]:
    return tuple(one.name for one, said in about(Root) if said.effect in effects)


SHARED = tuple(one.name for one, said in about(Root) if said.shared)
MAY_CHANGE = tuple(one.name for one, said in about(Root) if said.may_change)
MEANT = {one.name: said.before for one, said in about(Root) if said.before is not ALWAYS}
# No result of a simulation depends on these: in a simulation no client is late.
IDLE = _of(Effect.WAITING, Effect.LATENESS, Effect.NOTHING)
# A difference in these cannot explain why the rounds of two runs differ.
HARMLESS = _of(Effect.LENGTH, Effect.WAITING, Effect.NOTHING)
# Keys that are newer than the first cells of matrices, with the value that a cell without the key was run with.
SINCE = {one.name: said.before for one, said in about(Root) if said.since > (0, 1) and one.name not in IDLE}


def check_ranges(config: Any, root: type[Any]) -> None:
    """Raise UserError for the first key of `root` whose value is not allowed."""
    for one, said in about(root):
        if said.allowed is None or one.name not in config:
            continue
        value = config[one.name]
        if not (nullable(one) if value is None else value in said.allowed):
            raise UserError(f"{one.name}={'null' if value is None else value}: must be {said.allowed}")


def check_complete(config: Any, root: type[Root] | type[Pretraining] = Root) -> None:
    """Raise ValueError if a stored config lacks a key of its root."""
    if lacking := [name for name in root.__dataclass_fields__ if name not in config and name != "folder"]:
        raise ValueError(f"it lacks {', '.join(lacking)}")


def register() -> None:
    for name, root in (("root", Root), ("pretraining", Pretraining), ("matrices", Matrix)):
        ConfigStore.instance().store(name=name, node=root)
