"""From a resolved config to the objects of a run, here and in each worker process."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedshare import seeds, weights
from fedshare.attacks import Attack
from fedshare.attacks.liar import Liars
from fedshare.client import Training
from fedshare.data import split
from fedshare.data.dataset import Dataset, dtypes
from fedshare.data.partition import Own
from fedshare.data.partition.base import Partition
from fedshare.errors import UserError, first_line
from fedshare.experiments.config import compose, instantiate, sources
from fedshare.experiments.config.instantiate import make, shown
from fedshare.experiments.tracking import Tracker
from fedshare.machine.threads import one_thread
from fedshare.peft import Method
from fedshare.rounds import Schedule, sample
from fedshare.rounds.account import Account
from fedshare.runs import RunFolder
from fedshare.simulation import Declared, Owned, Part, Partitioned, Population, Shares
from fedshare.simulation.trial import attempt
from fedshare.strategy import Strategy, weakness
from fedshare.tasks import Task, models
from fedshare.tensors import Tensors
from fedshare.training.parts import Parts
from fedshare.training.rates import Rate
from fedshare.training.scratch import Scratch
from fedshare.transport.pace import Pace
from fedshare.weights import Given

_PARTS: dict[str, type] = {
    "strategy": Strategy,
    "peft": Method,
    "client": Training,
    "schedule": Rate,
    "task": Task,
    "attack": Attack,
    "tracking": Tracker,
}
SLOTS = _PARTS | {"partition": Partition, "model": torch.nn.Module, "data.load": Dataset}  # what is made, and its type
_OPTIMIZING = ("optimizer", "epochs", "steps", "lr_decay", "clip_norm")
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_CALLED = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}


def population(config: str, initial: Path | None = None) -> Population:
    """Everyone who may take part, from a resolved config as YAML: the same in every process that asks.

    They start from the model that a run holds at `initial`, where there is one.
    """
    made = population_of(DictConfig(OmegaConf.create(config)))
    if initial is not None and initial.exists():
        begin(made, initial)
    return made


def begin(population: Population, initial: Path) -> None:
    """Let all start from the model at `initial`. Raises UserError where that is damaged, or no such model."""
    try:
        population.scratch.begin(load_file(initial))
    except ValueError as error:
        raise UserError(f"{initial}: does not fit the model that the config makes now: {error}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{initial} is damaged: {first_line(error)}") from error


def population_of(config: DictConfig, own: str | None = None) -> Population:
    """`own` names the data of the clients of this host, where everyone has data of their own; see `sources.named`."""
    with one_thread():  # or the model's first bits would depend on how many there are
        strategy = make(config.strategy, "strategy", Strategy)
        training = replace(make(config.client, "client", Training), schedule=make(config.schedule, "schedule", Rate))
        task = make(config.task, "task", Task)
        partition = make(config.partition, "partition", Partition)
        device = device_of(config.device)
        dataset, shares, stand_in = _shared_out(config, task, partition, own)
        module, parts, given = tuned(config, dataset, task)
        scratch = Scratch(module, device, parts)
        attack = make(config.attack, "attack", Attack)
        liars = Liars(attack, len(shares), config.seed)
        liars.ids  # noqa: B018  # says what is wrong with those
        attack.suits(dataset.pool.subset(torch.arange(1)), dataset.classes)
        with seeds.scope(config.seed, "model"):  # a lazy data set may draw
            targets = max(1, dataset.pool.batch(slice(0, 1))[1].numel())
        made = Population(
            *(strategy, scratch, training, shares, config.seed, liars, task, config.unseen, given),
            targets=targets,
            stand_in=stand_in,
        )
        _ = made.newcomers  # now, or a folder would be there when nobody is left to train
        return made


def _shared_out(
    config: DictConfig, task: Task, partition: Partition, own: str | None
) -> tuple[Dataset, Shares, Part | None]:
    """A data set that shows what all examples are like, who has which, and what stands in for those elsewhere."""
    if not isinstance(partition, Own):
        if own is not None:
            raise UserError(f"--data {own}: is for partition=own; this run divides one data set among its clients")
        dataset = data(config, task)
        return dataset, Partitioned(dataset, partition, config.seed, config.validation), None
    if config.train_examples is not None:
        raise UserError(f"train_examples={config.train_examples}: partition=own has no common data set")
    like, examples = sources.blank(config, task)
    if own is None and not partition.sources:
        return like, Declared(partition.clients, partition.max_examples), examples

    def load(client: int) -> Dataset:
        where = f"partition.sources[{client}]" if own is None else f"--data {own.replace('{id}', str(client))}"
        source = config.partition.sources[client] if own is None else sources.named(own, client)
        try:
            with split.stream(config.seed, "own", client):
                found = data(sources.merged(config, source), task)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if (kinds := dtypes(found.pool)) != (wanted := dtypes(like.pool)):
            raise UserError(f"{where}: inputs of {kinds}, and data.dtype says {wanted}")
        return found

    return like, Owned(partition.clients, load, config.seed, config.validation), None


def tried(config: DictConfig) -> Population:
    """Everyone who may take part, after a step that shows that it can be done. Raises UserError where it cannot."""
    population = population_of(config)
    with one_thread():
        attempt(population)
    check_best(config, population)
    clients = range(len(population.shares))
    trains = [client for client in clients if client not in population.newcomers]
    check_strength(config, population.strategy, trains)
    return population


def simulated(config: DictConfig) -> Population:
    """As `tried`, where everyone's examples must be here."""
    population = tried(config)
    _check_here(population.stand_in)
    return population


def _check_here(stand_in: Part | None) -> None:
    if stand_in is not None:
        raise UserError("partition=own: a simulation needs partition.sources, a source for each client")


def check_strength(config: DictConfig, strategy: Strategy, trains: list[int]) -> None:
    """Raise UserError where in no round there can be the clients that the strategy needs for what it promises."""
    count = config.clients_per_round
    some = count is not None and count < len(trains)
    reason = None
    for round in range(1, config.rounds + 1 if some else 2):
        reason = weakness(strategy, sample(trains, count, config.seed, round))
        if reason is None:
            return
    raise UserError(f"strategy: {reason} (clients_per_round={shown(count)}, of {len(trains)} that train)")


def check_best(config: DictConfig, population: Population) -> None:
    """Raise UserError where there is nothing to select by, and something is to be selected."""
    if config.best is None and config.patience is None:
        return
    wanted = "best" if config.best is not None else "patience"
    if not config.validation:
        raise UserError(f"{wanted}={config[wanted]}: goes by the validation examples: say validation=0.1")
    known = [name for name, better in population.task.directions().items() if better]
    if config.best is not None and config.best not in known:
        raise UserError(f"best={config.best}: no such metric; allowed: {', '.join(known)}")


def check(config: DictConfig, seen: set[str]) -> None:
    """Find what is wrong with a job of a sweep, models aside, which take long to make.

    `seen` holds what was already looked at, for other jobs, and grows.
    """

    def new(*keys: str) -> bool:
        text = OmegaConf.to_yaml(OmegaConf.masked_copy(config, list(keys)))
        return text not in seen and not seen.add(text)  # type: ignore[func-returns-value]

    for key, kind in _PARTS.items():
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
        _, shares, stand_in = _shared_out(config, task, make(config.partition, "partition", Partition), None)
        _check_here(stand_in)
        if isinstance(shares, Owned):
            _ = [share.size for share in shares]  # loads each client's file
    clients, keys = config.partition.get("clients"), ("strategy", "partition", "clients_per_round", "rounds", "seed")
    if clients is not None and not config.unseen and new(*keys):
        check_strength(config, make(config.strategy, "strategy", Strategy), list(range(clients)))


def ignored(config: DictConfig, population: Population) -> str:
    """What the config says of optimizers and the strategy has no use for, in one line; empty where there is nothing."""
    if population.strategy.optimizes or population.scratch.local:
        return ""
    usual = OmegaConf.load(compose.CONF / "client" / "sgd.yaml")
    keys = [f"client.{key}" for key in _OPTIMIZING if config.client.get(key) != OmegaConf.select(usual, key)]
    keys += ["schedule"] * (config.schedule != OmegaConf.load(compose.CONF / "schedule" / "constant.yaml"))
    name = type(population.strategy).__name__
    return f"strategy: {name} steps without an optimizer, so nothing comes of {', '.join(keys)}" if keys else ""


def _counted(dataset: Dataset, stated: Any) -> str:
    """Where classes are counted from the largest label, and that is perhaps not what is meant."""
    labels = dataset.labels
    if labels is not None and labels.min() > 0:
        return f", for its labels are from {labels.min()} to {labels.max()}, and must be from 0"
    numbers = stated is None and labels is not None
    return "; of a regression it is how many numbers an example has" if numbers else ""


def data(config: DictConfig, task: Task) -> Dataset:
    """The data set, with its targets as the task takes them. Raises UserError where it is not as the config says."""
    dataset: Dataset = make(OmegaConf.select(config, "data.load"), "data.load", Dataset)
    if (stated := config.data.get("classes")) != dataset.classes:
        raise UserError(
            f"data.classes={shown(stated)}: {dataset.name} has {dataset.classes}{_counted(dataset, stated)}"
        )
    dataset = task.fitted(dataset)
    shape = config.data.get("shape")
    stated = OmegaConf.to_container(shape) if OmegaConf.is_config(shape) else shape
    if stated != (found := _plain(dataset.shape)):
        raise UserError(f"data.shape={stated}: {dataset.name} has {found}")
    count = config.get("train_examples")
    return dataset if count is None else dataset.scarce(count, config.seed)


def schedule(config: DictConfig, population: Population) -> Schedule:
    shares = population.shares
    if isinstance(shares, Declared):  # which grow as clients join
        sizes, tests, validations = shares.sizes, shares.tests, shares.validations
    else:
        sizes, tests, validations = (
            {client: getattr(share, name) for client, share in enumerate(shares)}
            for name in ("size", "tests", "validations")
        )
    return Schedule(
        rounds=config.rounds,
        seed=config.seed,
        clients_per_round=config.clients_per_round,
        evaluate_every=config.evaluate_every,
        evaluate_first=config.evaluate_first,
        max_examples=max(sizes.values(), default=0),  # who claims more than anyone was given is lying
        sizes=sizes,
        tests=tests,
        validations=validations,
        targets=population.targets,
        clients=len(shares),
        unseen=tuple(population.newcomers),
        max_norm_ratio=config.get("max_norm_ratio"),
        halt_weakened=config.get("on_weakened") == "halt",
    )


def pace(config: DictConfig) -> Pace:
    return Pace(**{key: config[key] for key in asdict(Pace())})


def account(scratch: Scratch) -> Account:
    return Account(scratch.parts.groups, sum(tensor.nbytes for tensor in scratch.whole.values()))


def device_of(name: str) -> torch.device:
    try:
        torch.device(name)
    except RuntimeError as error:
        word = name.lower().rstrip("0123456789")
        close = [_CALLED[word]] if word in _CALLED else difflib.get_close_matches(word, _DEVICES, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"device={name}: no such device{hint}; allowed: {', '.join(_DEVICES)}, cuda:1, ...") from error
    try:
        (torch.ones(1, device=name) + 1).item()
    except Exception as error:
        raise UserError(f"device={name}: {first_line(error).split('. ')[0]}") from error
    return torch.device(name)


def tuned(config: DictConfig, dataset: Dataset, task: Task) -> tuple[torch.nn.Module, Parts, Given | None]:
    """The model that everyone starts with, its partition, and what of it came from its weights, where it has some.

    Weights are the model's, or, such as those of a run, of the model with what `peft` adds.
    """
    method = make(config.peft, "peft", Method)
    model = _drawn(config, dataset, task)
    given, refusal = None, None
    try:
        given = _laid(config, model, method.head)
    except UserError as error:
        refusal = error
    names = _names(model)
    with seeds.scope(config.seed, "peft"):  # of its own: what is added is the same whatever the model has drawn
        model, parts = method.tune(model)
    if refusal is not None:
        now = _names(model)
        if set(names.values()) >= set(now.values()):
            raise refusal
        given = _laid(config, model, method.head, refusal, {n: now[one] for one, n in names.items() if one in now})
    _show(model, dataset, task, "peft: the model it gives")
    return model, parts, given


def backbone(config: DictConfig, dataset: Dataset, task: Task) -> torch.nn.Module:
    """The model alone, from its weights where there are some."""
    model = _drawn(config, dataset, task)
    _laid(config, model, None)
    return model


def _drawn(config: DictConfig, dataset: Dataset, task: Task) -> torch.nn.Module:
    with seeds.scope(config.seed, "model"):
        model: torch.nn.Module = make(config.model, "model", torch.nn.Module)
        _show(model, dataset, task, "model:")
    if isinstance(model, torch.jit.ScriptModule):  # torch gives no access to its parts
        raise UserError(
            "model: is scripted, and cannot be divided into its parts; name what torch.jit.script was given"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("model: has no parameter to train")
    return model


def _names(model: torch.nn.Module) -> dict[int, str]:
    """The names of the model's tensors, by the identity of each."""
    return {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}


def _laid(
    config: DictConfig,
    model: torch.nn.Module,
    head: str | None,
    refusal: UserError | None = None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Given | None:
    """What of `model` is now that of the config's weights; of those of `head` only what fits is taken.

    Weights of the model before it was tuned are found by the names that it had then, `renamed` since.
    """
    if config.weights is None:
        return None

    def read() -> Tensors:
        return {renamed.get(name, name): tensor for name, tensor in _weights(str(config.weights)).items()}

    try:
        drawn = weights.overlay(model, read(), f"weights={config.weights}", head or weights.HEAD)
    except UserError as error:
        raise refusal or error from None
    types = {name: tensor.dtype for name, tensor in model.state_dict().items() if name not in drawn}
    return Given(config.weights, read, types)


def _weights(name: str) -> Tensors:
    """The weights called `name`. What a run's model lacks, for it is frozen or at home, is what that run began with."""
    path, tensors = weights.locate(name), weights.read(name)
    run = RunFolder(path.parent)
    if path not in (run.model, run.best_model) or not (run.initial.exists() and run.config.exists()):
        return tensors
    began = OmegaConf.select(OmegaConf.load(run.config), "weights")
    return (_weights(began) if began else {}) | weights.read(str(run.initial)) | tensors


def _show(model: torch.nn.Module, dataset: Dataset, task: Task, what: str) -> None:
    """Show it one example, so that a model of the wrong shape is named now, and a lazy one learns its shape."""
    inputs, targets = dataset.pool.batch(slice(0, 1))
    try:
        with torch.no_grad():
            found = list(models.select(models.call(model.eval(), inputs), task.output)[0].shape)
    except UserError:
        raise
    except Exception as error:  # anybody's model
        taken = f"{dataset.name}'s inputs of shape {_plain(dataset.shape)}"
        raise UserError(f"{what} cannot take {taken}: {first_line(error)}") from error
    if found not in (expected := task.shapes(targets, dataset.classes)):
        wanted = " or ".join(map(str, expected))
        raise UserError(f"{what} gives outputs of shape {found}, not {wanted}, for {dataset.name}")


def _plain(shape: Any) -> Any:
    """Shapes as a config has them."""
    if isinstance(shape, Mapping):
        return {name: list(part) for name, part in shape.items()}
    return [list(part) for part in shape] if isinstance(shape, list) else list(shape)
