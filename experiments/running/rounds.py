"""All rounds of a run, simulated or deployed: its observers, and its checkpoints."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedshare.data.partition import counted_from_one, left_out
from fedshare.errors import RunHalted
from fedshare.experiments.config import build, checks
from fedshare.experiments.config.instantiate import make
from fedshare.experiments.hosts.orders import NoOrders, Orders
from fedshare.experiments.running.adversaries import played
from fedshare.experiments.running.going_on import again, last_saved
from fedshare.experiments.running.keeping import Keeper
from fedshare.experiments.running.models import write_last
from fedshare.experiments.running.observers import Notes, Selection, Trackers
from fedshare.experiments.running.pictures import (
    draw_partition,
    draw_progress,
    graph_lines,
    keep_graph,
    population_line,
)
from fedshare.experiments.signals import terminable
from fedshare.experiments.tracking import NoTracker, Tracker
from fedshare.machine.threads import one_thread
from fedshare.network import Network
from fedshare.report.best import Best
from fedshare.report.console import Progress
from fedshare.report.rows import caution, evaluations
from fedshare.report.summary import summary
from fedshare.rounds.chain import START
from fedshare.runs import Row, RunFolder
from fedshare.runs.checkpoint import Checkpoint
from fedshare.runs.observers import Observer, writers
from fedshare.simulation import Partitioned, Population
from fedshare.strategy import Averages


def rounds(
    config: DictConfig,
    folder: RunFolder,
    network: Network,
    population: Population,
    start: Checkpoint | None,
    group: str | None,
    watcher: Tracker = NoTracker(),  # noqa: B008  # frozen
    orders: Orders = NoOrders(),  # noqa: B008  # it holds nothing
    interrupts: Callable[[], AbstractContextManager[None]] = terminable,
    alone: bool = False,
) -> Best:
    """Run all rounds after `start`, with clients that already hold the run's initial model.

    `watcher` is called like the config's tracker, and `orders` may ask for a checkpoint. `interrupts` is the block in
    which signals end the run; `alone`: as for `played`. Returns the best round on validation examples.
    """
    keeper = Keeper(folder, network)
    if start is None:
        with one_thread():
            state = population.strategy.init(population.scratch.initial, population.clients)
        digest, first = START, 1
    else:
        state, digest, first = start.server, start.digest, start.round + 1
        keeper.recall(start)
    writing = writers(folder, state)
    partition = cache(lambda: draw_partition(population, folder, config.name))  # called after a round: takes a second
    if shape := build.shape(config, population):
        keep_graph(folder, shape)
        print(graph_lines(shape, len(population.shares), config.clients_per_round), flush=True)
    for line in _remarks(config, population):
        print(line, flush=True)
    best = best_of(config, population, folder.rows())
    trackers = Trackers(make(config.tracking, "tracking", Tracker), watcher)
    metric = population.task.compared
    with interrupts(), _progress(config, folder, network, population, first) as progress:
        plain: Any = OmegaConf.to_container(config)
        trackers.start(plain, config.name, group, folder.path, progress.note)
        try:
            notes = Notes(progress.note, folder.rows())
            selection = Selection(best, keeper if config.best is not None else None)
            observers: list[Observer] = [*writing, trackers, notes, selection]
            coming = played(
                *(config, network, population, state, first - 1, digest),
                heard=lambda purpose, *counts: progress.heard(purpose.value, *counts),
                alone=alone,
            )
            for done in () if best.over else keeper.until_halted(coming):
                state = done.state
                for observer in observers:
                    observer.saw(done)
                due = orders.due() or best.over or _due(done.number, config)
                saved = {"save": keeper.save(done)} if due else {}
                progress.row(done.row | {"seconds": done.row["seconds"] | saved})
                partition()
                if best.over:
                    break
            if best.over:
                progress.note(f"ends after round {best.last}: {best.patience} rounds without a better {best.metric}")
        except BaseException as error:
            with suppress(Exception):  # failures to draw must not hide why the run ended
                if isinstance(error, KeyboardInterrupt):
                    how = again(folder, network.memories.remote)
                    progress.note(f"stopped; {how} goes on after round {last_saved(folder)}, its last checkpoint")
                trackers.finish(False)
                partition()
                draw_progress(folder, metric, config)
            if isinstance(error, RunHalted) and folder.metrics.exists() and folder.metrics.stat().st_size:
                raise RunHalted(f"{error}; {folder.path} keeps the rounds before") from error
            raise
        trackers.finish(True)
        partition()
        rows, pictures = draw_progress(folder, metric, config)
    files = [*pictures, "partition.svg", folder.metrics.name]
    files += write_last(folder, state)
    print(summary(rows, f"{folder.path}: {', '.join(files)}", best))
    return best


def best_of(config: DictConfig, population: Population, rows: list[Row]) -> Best:
    """Return the best of `rows` on validation examples, by the config's metric or the task's headline."""
    metric = population.task.compared if config.best is None else config.best
    best = Best(metric, population.task.directions()[metric] == "higher", config.patience)
    for row in rows:
        best.see(row)
    return best


def _remarks(config: DictConfig, population: Population) -> list[str]:
    """Warn of settings without effect, and of limitations of the data."""
    said = [checks.ignored(config, population)]
    if isinstance(parts := population.shares, Partitioned):
        said += [left_out(parts.split, parts.dataset), counted_from_one(parts.dataset)]
    return [line for line in said if line]


def _progress(config: DictConfig, folder: RunFolder, network: Network, population: Population, first: int) -> Progress:
    tests = evaluations(folder.rows())
    return Progress(
        config.rounds,
        first,
        f"{config.name} · {population_line(population)} · seed {config.seed}",
        metric=population.task.compared,
        before=tests[-1] if tests else None,
        about=caution(*_tests(population)) if config.evaluate_every else "",
        times=network.memories.remote,
        reports={*population.strategy.reports, *["average"] * isinstance(population.strategy, Averages)},
    )


def _tests(population: Population) -> tuple[list[int], int]:
    """Return the numbers of test examples of all clients but newcomers, and the number of these clients."""
    counted = [client for client in range(len(population.shares)) if client not in set(population.newcomers)]
    return [population.shares[client].tests for client in counted], len(counted)


def _due(round: int, config: DictConfig) -> bool:
    """Whether a checkpoint is due."""
    return round % config.checkpoint_every == 0 or round == config.rounds
