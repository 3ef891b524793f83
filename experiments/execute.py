"""One run, from a resolved config to the folder it leaves; `fedshare run`, `demo` and `resume` end here."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from safetensors.torch import save as save_tensors

from fedshare.attacks import Attack
from fedshare.attacks.colluding import Colluding
from fedshare.attacks.liar import Liars
from fedshare.attacks.update import CHANGE, MODEL
from fedshare.data.partition import counted_from_one, left_out, table
from fedshare.errors import RunHalted, UserError, first_line
from fedshare.experiments.config import build, older, trust
from fedshare.experiments.config.instantiate import make
from fedshare.experiments.config.schema import Pretraining, Root, check_complete, check_ranges
from fedshare.experiments.config.trust import Trust
from fedshare.experiments.hosts.orders import NoOrders, Orders
from fedshare.ledger.transcript import kept
from fedshare.machine import devices
from fedshare.machine.files import on_disk, write_atomically
from fedshare.machine.threads import one_thread
from fedshare.network import Heard, Network
from fedshare.report.best import Best
from fedshare.report.collaboration import collaboration_plot
from fedshare.report.console import Progress
from fedshare.report.plots import partition_plot, progress_plot
from fedshare.report.robustness import observed
from fedshare.report.rows import caution, evaluations
from fedshare.report.summary import summary
from fedshare.rounds import Round, run_server
from fedshare.rounds.chain import START
from fedshare.runs import Row, RunFolder, checkpoint, records_flaw
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Partitioned, Population, Simulation
from fedshare.state import State, copied, nbytes

from .beginnings import begin, check_streams, create, warn, warn_of_versions
from .headings import heading
from .signals import terminable
from .tracking import NoTracker, Tracker

# Keys that older versions had not, and what they did without them.
MEANT = {
    "peft": {"_target_": "fedshare.peft.Full"},
    "train_examples": None,
    "weights": None,
    "evaluate_first": False,
    "validation": 0.0,
    "unseen": 0,
    "best": None,
    "patience": None,
    "on_client_error": "halt",
    "on_weakened": "note",
    "max_norm_ratio": None,
    "deadline_factor": None,
    "deadline_floor": 0.0,
    "suspend_after": None,
    "quorum": 1.0,
    "schedule": {"_target_": "fedshare.training.rates.Constant"},
    "task": {"_target_": "fedshare.tasks.Classification"},
    "attack": {"_target_": "fedshare.attacks.Attack", "adversaries": 0},
}


_TWICE = 1 << 28  # bytes of what clients remember that are held a second time, lest the run halts in the next round


def execute(config: DictConfig, path: Path, group: str | None = None, population: Population | None = None) -> Best:
    """Run all rounds, in a folder of their own. `group` names the sweep that the run is part of."""
    folder = RunFolder(path)
    folder.check_new()
    population = population or build.simulated(config)  # of nothing that a crash has left in the folder
    with simulation(config, folder, population) as network:
        create(folder, config, network.population)
        with on_disk(path, partial(goes_on, folder)), folder.lock():
            return rounds(config, folder, network, network.population, None, group)


def resume(path: str, last: int | None = None, trusted: Trust | None = None) -> None:
    """Go on with a run that was stopped, from its last whole checkpoint; with `last`, up to another last round.

    `trusted`: as for `stored`.
    """
    folder = RunFolder.open(path)
    check_streams(folder)
    config = stored(folder, last, trusted=trusted)
    with on_disk(folder.path, partial(goes_on, folder)), folder.lock():
        start = last_checkpoint(folder, config)
        if start and start.remote and any(memory["round"] for memory in start.clients.values()):
            raise UserError(f"{path}: its clients keep their memories: `fedshare server --resume` goes on with it")
        if start:  # those who keep their memories themselves have none
            start = replace(start, clients={} if start.remote else start.clients, remote=False)
        with simulation(config, folder) as network:
            begin(folder, network.population, config)
            folder.rewind(start.round if start else 0)
            if last is not None:
                folder.amend(OmegaConf.to_yaml(config))
            rounds(config, folder, network, network.population, start, None)


def goes_on(folder: RunFolder, remote: bool = False) -> str:
    """What of the run in `folder` is safe, and how to go on with it once the disk can be written; or it is `remote`."""
    last = next(iter(checkpoint.rounds(folder.checkpoints)), 0)
    safe = f"safe up to round {last}, its last checkpoint" if last else "its config is safe, and no round yet"
    return f"{safe}; once it can be written, {_again(folder, remote)} goes on, to the same bits"


def _again(folder: RunFolder, remote: bool) -> str:
    return f"the same command with --resume {folder.path}" if remote else f"`fedshare resume {folder.path}`"


def stored(
    folder: RunFolder,
    last: int | None = None,
    root: type[Root] | type[Pretraining] = Root,
    trusted: Trust | None = None,
) -> DictConfig:
    """The config that a run was started with; with `last`, for another last round.

    What it may name where another user wrote it is what all may and what is `trusted`; None: whatever it does.
    """
    try:
        text = folder.config.read_text("utf-8")
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise ValueError("it holds no keys")
        older.renew(config)
        if trusted is not None and not folder.is_ours(text):
            trust.check(config, trusted, f"{folder.path}, whose config this user did not write")
        for key, meant in MEANT.items() if root is Root else ():
            config.setdefault(key, meant)
        if last is not None:
            config.rounds = last
        check_complete(config, root)
        check_ranges(config)
        made = OmegaConf.masked_copy(config, [str(key) for key in config if key != "tracking"])
        OmegaConf.to_container(made, resolve=True)
    except UserError:
        raise
    except InterpolationResolutionError as error:  # a variable of the environment that is gone
        raise UserError(f"{folder.config}: {error.full_key}: {first_line(error)}") from error
    except Exception as error:
        raise UserError(f"{folder.config} is damaged: {first_line(error)}") from error
    return config


def last_checkpoint(folder: RunFolder, config: DictConfig) -> Checkpoint | None:
    """Where the run in `folder`, whose lock is held, can go on."""
    path = folder.path
    if wrong := records_flaw(folder):
        raise UserError(f"{path}: {wrong}")
    start = checkpoint.latest(folder.checkpoints, warn)
    if start and start.round > config.rounds:
        raise UserError(f"rounds={config.rounds}: {path} is already at round {start.round}")
    if start and start.round == config.rounds:
        print(f"{path} is at its last round, {config.rounds}; --rounds N goes on to round N")
    if start and [link.digest for link in folder.links()][start.round - 1 : start.round] != [start.digest]:
        raise UserError(f"{path}: its digests.jsonl does not lead to the checkpoint of round {start.round}")
    warn_of_versions(folder)
    return start


def simulation(config: DictConfig, folder: RunFolder, population: Population | None = None) -> Simulation:
    workers = config.workers
    cores = devices.cores()
    if workers is None:
        # Processes on one accelerator would each hold a context of it, and wait for each other.
        workers = cores if cores > 1 and config.device == "cpu" else 0
    elif workers > (most := 4 * cores):
        warn(f"workers={workers}: starting {most}, four a core")
        workers = most
    make_one = partial(build.population, OmegaConf.to_yaml(config), folder.initial)  # here, and in each worker
    return Simulation(make_one, workers, config.timeout, population, config.on_client_error)


def rounds(
    config: DictConfig,
    folder: RunFolder,
    network: Network,
    population: Population,
    start: Checkpoint | None,
    group: str | None,
    watcher: Tracker = NoTracker(),  # noqa: B008  # frozen
    orders: Orders = NoOrders(),  # noqa: B008  # it holds nothing
) -> Best:
    """All rounds after `start`, wherever the clients are, who all have the model that the run began with.

    `watcher` hears of them as the config's tracker does, and `orders` may ask for a checkpoint. Gives which round was
    the best on validation examples.
    """
    if start is None:
        with one_thread():
            state = population.strategy.init(population.scratch.initial, population.clients)
        digest, first = START, 1
    else:
        state, digest, first = start.server, start.digest, start.round + 1
        network.memories.recall(start.clients, start.round)
        network.memories.keep(checkpoint.rounds(folder.checkpoints)[-1])
    _open_ledger(folder, state)
    _draw_partition(population, folder, config.name)
    said = [build.ignored(config, population)]
    if isinstance(parts := population.shares, Partitioned):
        said += [left_out(parts.split, parts.dataset), counted_from_one(parts.dataset)]
    for line in filter(None, said):
        print(line, flush=True)
    best = best_of(config, population, folder.rows())
    trackers: list[Tracker] = [make(config.tracking, "tracking", Tracker), watcher]
    header = f"{config.name} · {_population_line(population)} · seed {config.seed}"
    metric = population.task.compared
    tests = evaluations(folder.rows())
    before = tests[-1] if tests else None
    about = caution(*_tests(population)) if config.evaluate_every else ""
    told: dict[str, Any] = {"metric": metric, "before": before, "about": about, "times": network.memories.remote}
    with terminable(), Progress(config.rounds, first, header, **told) as progress:
        plain: Any = OmegaConf.to_container(config)
        for tracker in trackers:
            tracker.start(plain, config.name, group, folder.path, progress.note)
        try:
            weak = "weakened" in (folder.rows() or [{}])[-1]
            coming = played(
                *(config, network, population, state, first - 1, digest),
                heard=lambda purpose, *counts: progress.heard(purpose.value, *counts),
            )
            for done in () if best.over else _keeping(coming, folder, network):
                state = done.state
                folder.append(done.row, done.link)
                _commit(folder, done)
                for tracker in trackers:
                    tracker.log(done.row)
                for client, reason in done.row["dropped"].items():
                    progress.note(f"round {done.number}: client {client} dropped: {reason}")
                if "weakened" in done.row and not weak:  # not again in each round
                    progress.note(f"round {done.number}: {done.row['weakened']}")
                weak = "weakened" in done.row
                if best.see(done.row) and config.best is not None:
                    _keep_best(folder, network, done, best)
                due = orders.due() or best.over or _due(done.number, config)
                saved = {"save": _save(folder, network, done)} if due else {}
                progress.row(done.row | {"seconds": done.row["seconds"] | saved})
                if best.over:
                    break
            if best.over:
                progress.note(f"ends after round {best.last}: {best.patience} rounds without a better {best.metric}")
        except BaseException as error:
            with suppress(Exception):  # why it ended is to be heard, not that it cannot be drawn either
                if isinstance(error, KeyboardInterrupt):
                    last = next(iter(checkpoint.rounds(folder.checkpoints)), 0)
                    how = _again(folder, network.memories.remote)
                    progress.note(f"stopped; {how} goes on after round {last}, its last checkpoint")
                for tracker in trackers:
                    tracker.finish(False)
                _draw_progress(folder, metric, config)
            if isinstance(error, RunHalted) and folder.metrics.exists() and folder.metrics.stat().st_size:
                raise RunHalted(f"{error}; {folder.path} keeps the rounds before") from error
            raise
        for tracker in trackers:
            tracker.finish(True)
        rows, collaborates = _draw_progress(folder, metric, config)
    files = [f"{metric}.svg", *["collaboration.svg"] * collaborates, "partition.svg", folder.metrics.name]
    if "params" in state:
        write_atomically(folder.model, save_tensors({name: t.contiguous() for name, t in state["params"].items()}))
        files.append(folder.model.name)
    files += [folder.best_model.name] * folder.best_model.exists()
    print(summary(rows, f"{folder.path}: {', '.join(files)}", best))
    return best


def _draw_progress(folder: RunFolder, metric: str, config: DictConfig) -> tuple[list[Row], bool]:
    """The rows so far, and whether they tell who collaborates."""
    rows = folder.rows()
    progress_plot(rows, folder.path / f"{metric}.svg", heading([config], [config.name]))
    return rows, collaboration_plot(rows, folder.path / "collaboration.svg")


def _keeping(coming: Iterator[Round], folder: RunFolder, network: Network) -> Iterator[Round]:
    """The rounds as they come; where the run halts in one, the last before it is checkpointed, and gone on from.

    Clients whose memories are too much to be held twice go on from the last checkpoint that was due, to the same bits.
    """
    last: Checkpoint | None = None
    try:
        for done in coming:
            last = None
            yield done
            if nbytes(memories := network.memories.remember()) <= _TWICE:
                # Now, and a copy: the next round changes what the clients remember.
                last = Checkpoint(done.number, done.link.digest, done.state, copied(memories), network.memories.remote)
    except RunHalted:
        if last is not None and checkpoint.rounds(folder.checkpoints)[:1] != [last.round]:
            checkpoint.save(folder.checkpoints, last)
        raise


def best_of(config: DictConfig, population: Population, rows: list[dict[str, Any]]) -> Best:
    """The best of `rows` on validation examples, by the config's metric or the task's headline."""
    metric = population.task.compared if config.best is None else config.best
    best = Best(metric, population.task.directions()[metric] == "higher", config.patience)
    for row in rows:
        best.see(row)
    return best


def _keep_best(folder: RunFolder, network: Network, done: Round, best: Best) -> None:
    kept = Checkpoint(done.number, done.link.digest, done.state, network.memories.remember(), network.memories.remote)
    checkpoint.save(folder.best, kept, keep=1)
    if "params" in done.state:
        about = {"round": str(best.round), "metric": best.metric, "validation": repr(best.value)}
        tensors = {name: tensor.contiguous() for name, tensor in done.state["params"].items()}
        write_atomically(folder.best_model, save_tensors(tensors, about))


def played(
    config: DictConfig,
    network: Network,
    population: Population,
    state: State,
    start: int = 0,
    digest: str = START,
    heard: Heard | None = None,
) -> Iterator[Round]:
    """The rounds after `start` with the config's adversaries, and in each row what is seen of them."""
    liars = population.liars.ids
    if isinstance(population.liars, Liars) and liars:
        attack = population.liars.attack
        _check_collusion(population, attack, state, config.rounds)
        network = Colluding(network, population.strategy, attack, liars, population.scratch.initial, config.seed)
    schedule = build.schedule(config, population)
    account = build.account(population.scratch)
    strategy, task = population.strategy, population.task
    for done in run_server(strategy, network, state, schedule, start, digest, account, task, heard):
        yield replace(done, row=done.row | observed(done.row, liars))


def _check_collusion(population: Population, attack: Attack, state: State, rounds: int) -> None:
    """Raise UserError where adversaries answer what others say of a model, and nobody says anything of one."""
    uploads = population.strategy.expects(state, population.liars.ids[0])
    told = not uploads or {MODEL, CHANGE} & uploads.keys()
    if not told and any(type(attack.at(r)).collude is not Attack.collude for r in range(1, rounds + 1)):
        raise UserError(f"attack: answers what others upload of a model, and the strategy uploads {', '.join(uploads)}")


def _open_ledger(folder: RunFolder, state: State) -> None:
    """Begin the run's ledger, if it has one, or see that it leads to where the run goes on."""
    if (found := kept(state)) is None:
        return
    manifest, transcript = found
    if transcript.round == 0:
        folder.ledger.create(manifest)
    elif folder.ledger.read().head != transcript.head:
        raise UserError(f"{folder.ledger.path}: does not lead to the checkpoint's round {transcript.round}")


def _commit(folder: RunFolder, done: Round) -> None:
    found = kept(done.state)
    if found and found[1].round == done.number:  # else nobody was heard
        folder.ledger.append(found[1].last, found[1].head)


def _due(round: int, config: DictConfig) -> bool:
    """Whether a checkpoint is."""
    return round % config.checkpoint_every == 0 or round == config.rounds


def _draw_partition(population: Population, folder: RunFolder, name: str) -> None:
    parts = population.shares
    if isinstance(parts, Partitioned) and parts.dataset.labels is not None:
        counts = table(parts.split, parts.dataset.labels, parts.dataset.classes)
    else:  # sizes alone, as if there were one class
        counts = np.array(population.sizes())[:, None]
    partition_plot(counts, folder.path / "partition.svg", title=f"{name}: training examples by client and class")


def _save(folder: RunFolder, network: Network, done: Round) -> float:
    began = time.perf_counter()
    memories, remote = network.memories.remember(), network.memories.remote
    checkpoint.save(folder.checkpoints, Checkpoint(done.number, done.link.digest, done.state, memories, remote))
    network.memories.keep(checkpoint.rounds(folder.checkpoints)[-1])
    return time.perf_counter() - began


def _tests(population: Population) -> tuple[list[int], int]:
    """How many test examples there are of each client whose test counts, and how many clients that are."""
    counted = [client for client in range(len(population.shares)) if client not in set(population.newcomers)]
    return [population.shares[client].tests for client in counted], len(counted)


def _population_line(population: Population) -> str:
    sizes = np.array([size for size in population.sizes() if size] or [0])  # of those that are known
    scratch = population.scratch
    parameters, shared = (
        sum(scratch.shapes[name].numel() for name in names) for names in (scratch.shapes, scratch.shared)
    )
    part = f", {shared:,} of them shared" if shared != parameters else ""
    return (
        f"{len(population.shares)} clients with {sizes.min()} to {sizes.max()} examples "
        f"(median {np.median(sizes):g}) · {parameters:,} parameters{part}"
    )
