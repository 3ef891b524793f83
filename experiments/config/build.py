"""From a resolved config to the objects of a run, here and in each worker process."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedshare import seeds
from fedshare.attacks import Attack
from fedshare.attacks.liar import Liars
from fedshare.client import Training
from fedshare.data.partition.base import Partition
from fedshare.errors import UserError, first_line
from fedshare.experiments.config.checks import check_best, check_here, check_strength
from fedshare.experiments.config.device import device_of
from fedshare.experiments.config.examples import shared_out
from fedshare.experiments.config.instantiate import make
from fedshare.experiments.config.model import tuned
from fedshare.experiments.config.schema import SINCE
from fedshare.ledger.transcript import caught_up
from fedshare.links import Links
from fedshare.machine.threads import one_thread
from fedshare.peers import Peering, Shape
from fedshare.rounds import Schedule
from fedshare.rounds.account import Account
from fedshare.simulation import Declared, Population
from fedshare.simulation.trial import attempt
from fedshare.strategy import Strategy
from fedshare.tasks import Task
from fedshare.training.rates import Rate
from fedshare.training.scratch import Scratch
from fedshare.transport.pace import Pace


def population(config: str, initial: Path | None = None) -> Population:
    """Build all participants from a resolved config in YAML: the same result in every process.

    They start from the run's model at `initial`, if given.
    """
    made = population_of(DictConfig(OmegaConf.create(config)))
    if initial is not None and initial.exists():
        begin(made, initial)
    return made


def begin(population: Population, initial: Path) -> None:
    """Start all participants from the model at `initial`. Raises UserError if it is damaged or does not fit."""
    try:
        population.scratch.begin(load_file(initial))
    except ValueError as error:
        raise UserError(f"{initial}: does not fit the model that the config makes now: {error}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{initial} is damaged: {first_line(error)}") from error


def population_of(config: DictConfig, own: str | None = None) -> Population:
    """Build the participants. `own` names the data of this host's clients, for partition=own; see `sources.named`."""
    with one_thread():  # otherwise the model's initial bits would depend on the thread count
        strategy = make(config.strategy, "strategy", Strategy)
        training = replace(make(config.client, "client", Training), schedule=make(config.schedule, "schedule", Rate))
        task = make(config.task, "task", Task)
        partition = make(config.partition, "partition", Partition)
        device = device_of(config.device)
        dataset, shares, stand_in = shared_out(config, task, partition, own)
        module, parts, given = tuned(config, dataset, task)
        scratch = Scratch(module, device, parts)
        attack = make(config.attack, "attack", Attack)
        liars = Liars(attack, len(shares), config.seed)
        liars.ids  # noqa: B018  # raises if the ids are invalid
        attack.suits(dataset.pool.subset(torch.arange(1)), dataset.classes)
        with seeds.scope(config.seed, "model"):  # a lazy data set may draw random numbers
            targets = max(1, dataset.pool.batch(slice(0, 1))[1].numel())
        rounds = config.get("rounds", 0)  # a deployed client's part of the config has none
        strategy = peering(config).around(strategy, len(shares), config.seed, rounds)
        made = Population(
            *(strategy, scratch, training, shares, config.seed, liars, task, config.unseen, given),
            targets=targets,
            stand_in=stand_in,
        )
        _ = made.newcomers  # validated now, because it raises if no client is left to train
        return made


def tried(config: DictConfig) -> Population:
    """Build all participants and try one step. Raises UserError if it fails."""
    population = population_of(config)
    with one_thread():
        attempt(population)
    check_best(config, population)
    clients = range(len(population.shares))
    trains = [client for client in clients if client not in population.newcomers]
    check_strength(config, population.strategy, trains)
    return population


def simulated(config: DictConfig) -> Population:
    """The same as `tried`, but requires all examples to be local."""
    population = tried(config)
    check_here(population.stand_in)
    links(config).check(len(population.shares))
    return population


def schedule(config: DictConfig, population: Population) -> Schedule:
    shares = population.shares
    if isinstance(shares, Declared):  # their numbers grow as clients join
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
        max_examples=max(sizes.values(), default=0),  # a client that claims more than the largest share is lying
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


def account(config: DictConfig, population: Population) -> Account:
    scratch = population.scratch
    made = Account(scratch.parts.groups, sum(tensor.nbytes for tensor in scratch.whole.values()), caught_up)
    return peering(config).accounted(made, population.strategy, len(population.shares), config.seed)


def shape(config: DictConfig, population: Population) -> Shape | None:
    """Return what is known of the peers' graph, if there is one."""
    return peering(config).shape(len(population.shares), config.seed)


def peering(config: DictConfig) -> Peering:
    """Return how the participants are organised."""
    return make(_given(config, "peers"), "peers", Peering)


def links(config: DictConfig) -> Links:
    """Return what lies between the server and the clients."""
    return make(_given(config, "links"), "links", Links)


def _given(config: DictConfig, key: str) -> Any:
    """Return the config of a part that older configs lack."""
    return config.get(key, OmegaConf.create(SINCE[key]))
