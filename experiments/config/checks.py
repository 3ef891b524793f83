"""Checks for errors in a config, and for settings without effect, before its first round."""

from omegaconf import DictConfig, OmegaConf

from fedshare import weights
from fedshare.data.partition.base import Partition
from fedshare.errors import UserError
from fedshare.experiments.config import application, instantiate
from fedshare.experiments.config.device import device_of
from fedshare.experiments.config.examples import shared_out
from fedshare.experiments.config.instantiate import make, shown
from fedshare.experiments.config.slots import PARTS
from fedshare.rounds import sample
from fedshare.simulation import Owned, Part, Population
from fedshare.strategy import Strategy, weakness
from fedshare.tasks import Task

_OPTIMIZING = ("optimizer", "epochs", "steps", "lr_decay", "clip_norm")


def check(config: DictConfig, seen: set[str]) -> None:
    """Check a job of a sweep, except its model, which takes long to build.

    `seen` holds what was already checked for other jobs, and grows.
    """

    def new(*keys: str) -> bool:
        text = OmegaConf.to_yaml(OmegaConf.masked_copy(config, list(keys)))
        return text not in seen and not seen.add(text)  # type: ignore[func-returns-value]

    for key, kind in PARTS.items():
        if new(key):
            make(config[key], key, kind)
    if new("model"):
        instantiate.check(config.model, "model")
    if new("weights") and config.weights is not None:
        weights.locate(config.weights)
    if new("device"):
        device_of(config.device)
    if new("data", "train_examples", "partition", "task"):
        task = make(config.task, "task", Task)
        _, shares, stand_in = shared_out(config, task, make(config.partition, "partition", Partition), None)
        check_here(stand_in)
        if isinstance(shares, Owned):
            _ = [share.size for share in shares]  # loads each client's file
    clients, keys = config.partition.get("clients"), ("strategy", "partition", "clients_per_round", "rounds", "seed")
    if clients is not None and not config.unseen and new(*keys):
        check_strength(config, make(config.strategy, "strategy", Strategy), list(range(clients)))


def check_here(stand_in: Part | None) -> None:
    if stand_in is not None:
        raise UserError("partition=own: a simulation needs partition.sources, a source for each client")


def check_strength(config: DictConfig, strategy: Strategy, trains: list[int]) -> None:
    """Raise UserError if no round can have the number of clients that the strategy's guarantee needs."""
    count = config.clients_per_round
    some = count is not None and count < len(trains)
    reason = None
    for round in range(1, config.rounds + 1 if some else 2):
        reason = weakness(strategy, sample(trains, count, config.seed, round))
        if reason is None:
            return
    raise UserError(f"strategy: {reason} (clients_per_round={shown(count)}, of {len(trains)} that train)")


def check_best(config: DictConfig, population: Population) -> None:
    """Raise UserError if a best round is to be selected and there is nothing to select it by."""
    if config.best is None and config.patience is None:
        return
    wanted = "best" if config.best is not None else "patience"
    if not config.validation:
        raise UserError(f"{wanted}={config[wanted]}: goes by the validation examples: say validation=0.1")
    known = [name for name, better in population.task.directions().items() if better]
    if config.best is not None and config.best not in known:
        raise UserError(f"best={config.best}: no such metric; allowed: {', '.join(known)}")


def ignored(config: DictConfig, population: Population) -> str:
    """Return, in one line, the optimizer settings that the strategy does not use; "" if none."""
    if population.strategy.optimizes or population.scratch.local:
        return ""
    usual = OmegaConf.load(application.CONF / "client" / "sgd.yaml")
    keys = [f"client.{key}" for key in _OPTIMIZING if config.client.get(key) != OmegaConf.select(usual, key)]
    keys += ["schedule"] * (config.schedule != OmegaConf.load(application.CONF / "schedule" / "constant.yaml"))
    name = type(population.strategy).__name__
    return f"strategy: {name} steps without an optimizer, so nothing comes of {', '.join(keys)}" if keys else ""
