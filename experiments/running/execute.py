"""A simulated run, from a resolved config to its folder; the work of `fedshare run`, `demo` and `resume`."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError
from fedshare.experiments.beginnings import begin, check_streams, create, warn
from fedshare.experiments.config import build
from fedshare.experiments.config.instantiate import make
from fedshare.experiments.config.stored import stored
from fedshare.experiments.config.trust import Trust
from fedshare.experiments.running.going_on import goes_on, last_checkpoint
from fedshare.experiments.running.pictures import keep_graph
from fedshare.experiments.running.rounds import rounds
from fedshare.machine import devices
from fedshare.machine.files import on_disk
from fedshare.report.best import Best
from fedshare.runs import RunFolder
from fedshare.simulation import Population, Simulation, choice
from fedshare.simulation.cluster import Cluster
from fedshare.simulation.effort import Effort


def execute(config: DictConfig, path: Path, group: str | None = None, population: Population | None = None) -> Best:
    """Run all rounds, in a new folder. `group` names the sweep that the run is part of."""
    folder = RunFolder(path)
    folder.check_new()
    population = population or build.simulated(config)  # ignores anything that a crash left in the folder
    with simulation(config, folder, population) as network:
        create(folder, config, network.population)
        with on_disk(path, partial(goes_on, folder)), folder.lock():
            return rounds(config, folder, network, network.population, None, group)


def resume(path: str, last: int | None = None, trusted: Trust | None = None) -> None:
    """Resume a stopped run from its last intact checkpoint; with `last`, up to another last round.

    `trusted`: as for `stored`.
    """
    folder = RunFolder.open(path)
    check_streams(folder)
    config = stored(folder, last, trusted=trusted)
    with on_disk(folder.path, partial(goes_on, folder)), folder.lock():
        start = last_checkpoint(folder, config)
        if start and start.remote and any(memory["round"] for memory in start.clients.values()):
            raise UserError(f"{path}: its clients keep their memories: `fedshare server --resume` goes on with it")
        if start:  # clients that keep their own memories are absent here
            start = replace(start, clients={} if start.remote else start.clients, remote=False)
        with simulation(config, folder) as network:
            begin(folder, network.population, config)
            if shape := build.shape(config, network.population):
                keep_graph(folder, shape)  # raises before anything is rewound
            folder.rewind(start.round if start else 0)
            if last is not None:
                folder.amend(OmegaConf.to_yaml(config))
            rounds(config, folder, network, network.population, start, None)


def simulation(config: DictConfig, folder: RunFolder, population: Population | None = None) -> Simulation:
    """Return the network of simulated clients. Sets the config's engine, if it is left to be chosen."""
    make_one = partial(build.population, OmegaConf.to_yaml(config), folder.initial)  # here, and in each worker
    population = population or make_one()
    effort = cache(lambda: Effort.of(population, config.clients_per_round, config.rounds))  # if anything depends on it
    if config.engine == choice.AUTO:
        config.engine, why = choice.chosen(population, effort(), config.clients_per_round)
        if not effort().small:
            print(f"engine={config.engine}: {why}", flush=True)
    cluster, engine = make(config.cluster, "cluster", Cluster), choice.ENGINES[config.engine]
    places = cluster.places()
    workers = _placed(config.workers, places) if places else _workers(config, effort)
    return Simulation(make_one, workers, config.timeout, population, config.on_client_error, engine, cluster)


def _placed(asked: int | None, places: int) -> int:
    """Return the number of workers on a cluster that has room for `places`."""
    if asked and asked > places:
        warn(f"workers={asked}: starting {places}, which is all that the cluster has room for")
    return min(asked or places, places)


def _workers(config: DictConfig, effort: Callable[[], Effort]) -> int:
    """Return the number of processes that simulate the clients; 0 for this one."""
    cores, asked = devices.cores(), config.workers
    if asked is not None:
        if asked > (most := 4 * cores):
            warn(f"workers={asked}: starting {most}, four a core")
        return int(min(asked, most))
    if cores == 1:
        return 0
    # Processes on one accelerator would each hold a context on it, and wait for each other.
    if config.device != "cpu":
        return count if (count := devices.gpus(config.device)) > 1 and not effort().small else 0
    if effort().small:
        print(f"small run ({effort()}): simulated in this process; workers={cores} starts {cores} others", flush=True)
        return 0
    return cores
