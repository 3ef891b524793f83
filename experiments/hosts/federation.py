"""A run whose clients are a Flower Grid's: what our ServerApp does, and what our ClientApp is built from.

The one place that reads the run config, on servers and on clients. Its keys: ``overrides`` (hydra's, as on the command
line) or ``config`` (the resolved config as YAML, which is then all there is); on the server also ``folder``,
``resume``, ``clients`` (how many to wait for), ``wait`` (seconds), ``slack`` (MB).
"""

import hashlib
import itertools
import shlex
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError, first_line
from fedshare.experiments import beginnings, execute
from fedshare.experiments.config import build, compose, trust
from fedshare.experiments.config.environment import unfilled
from fedshare.experiments.config.trust import Trust
from fedshare.experiments.hosts.orders import NoOrders, Orders
from fedshare.experiments.tracking import NoTracker, Watcher
from fedshare.identity import marks
from fedshare.machine.files import on_disk, write_atomically
from fedshare.machine.garbage import settled
from fedshare.population import Computed
from fedshare.report.attendance import attendance_table
from fedshare.report.clock import say
from fedshare.runs import NOTHING, RunFolder
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Declared, Population
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Terms
from fedshare.transport.pace import Pace

RunConfig = Mapping[str, Any]
RUN_ID = "run-id"  # the file of a run's folder that names the run to clients
# What a client's part depends on, and so what everyone must have alike. The rest is the server's own affair, but for
# the weights, which may lie elsewhere on each host: the digest of what is taken of them tells whether it is the same.
SHARED = (
    *("strategy", "peft", "data", "train_examples", "validation", "unseen", "partition", "model", "client", "schedule"),
    *("task", "attack", "seed"),
)


@dataclass(frozen=True)
class Order:
    """What a server is asked to do, beside the config."""

    folder: Path
    resume: bool  # go on with the run in the folder, where there is one
    clients: int  # how many must be there before the first round; 0: all
    wait: float  # seconds to wait for them
    slack: int  # bytes that an answer may have beyond twice what is expected of it


def told(config: DictConfig) -> str:
    """What clients are told of the config: what they need, and nothing that is the server's affair alone.

    Raises UserError where that is to be filled in from the environment, which no client does for a server.
    """
    shared = OmegaConf.masked_copy(config, [*SHARED, "weights", "device"])
    if found := unfilled(OmegaConf.to_container(shared)):
        here = "say it, or leave it to each host: --data, --weights, $FEDSHARE_DATA"
        raise UserError(f"{found[0]}={found[1]}: a client does not read its environment for a server: {here}")
    return OmegaConf.to_yaml(shared)


def admit(run_config: Any, own: DictConfig | None, trusted: Trust, whose: str) -> None:
    """On a client, before anything is made of what the server told it.

    Raises UserError where that is not the config that the client insists on, its `own`, or names what it may not. What
    the same user's server tells has his mark, and may name what he likes.
    """
    try:
        text = str(run_config["config"])
        config = DictConfig(OmegaConf.create(text))
        if lacking := [key for key in SHARED if key not in config]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        trust.check_filled(config, whose)
        theirs = digest(config)
    except UserError:
        raise
    except Exception as error:  # of YAML's and OmegaConf's kinds
        raise UserError(f"{whose} cannot be read: {first_line(error)}") from error
    if own is not None and theirs != (ours := digest(own)):
        raise UserError(f"{whose} has the digest {theirs[:12]}, and the one that this client insists on {ours[:12]}")
    if not marks.is_marked(text, [str(run_config.get("mark", ""))]):
        trust.check(config, trusted, whose)


def config_of(run_config: RunConfig) -> DictConfig:
    """The resolved config of a run."""
    if text := str(run_config.get("config", "")):
        return DictConfig(OmegaConf.create(text))
    return compose.resolved(_overrides(run_config))


def _overrides(run_config: RunConfig) -> list[str]:
    text = str(run_config.get("overrides", ""))
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"overrides={text!r}: {error}") from None


def agreed(config: DictConfig) -> str:
    """What everyone in a run must have alike, as one text."""
    shared = OmegaConf.masked_copy(config, list(SHARED))
    if "sources" in shared.partition:  # where a client's own data come from is its host's affair
        shared.partition.sources, shared.data.load = [], None
    return OmegaConf.to_yaml(shared, sort_keys=True)


def digest(config: DictConfig) -> str:
    """SHA-256, in hex, by which two participants see whether they agree."""
    return hashlib.sha256(agreed(config).encode()).hexdigest()


def population(run_config: RunConfig, node_config: RunConfig) -> tuple[str, Population]:
    """On a client: what it must have in common with the others, and everyone who may take part.

    Its own are ``device``, its ``data`` where all have data of their own, and, where the server's path means nothing
    here, ``weights``.
    """
    config = config_of(run_config)
    told(config)
    text = agreed(config)
    config.device = str(node_config.get("device", "cpu"))
    config.weights = node_config.get("weights", config.weights)
    own = node_config.get("data")
    if own is None and "sources" in config.partition:
        raise UserError("partition=own: the data of this host are required: --data FILE, or data in the node config")
    return text, build.population_of(config, None if own is None else str(own))


def order_of(run_config: RunConfig, config: DictConfig) -> Order:
    folder = str(run_config.get("folder") or compose.folder(_overrides(run_config)) or "")
    try:
        clients, wait = int(run_config.get("clients", 0)), float(run_config.get("wait", 600.0))
        slack = int(float(run_config.get("slack", 1.0)) * 1e6)
    except (ValueError, OverflowError) as error:
        raise UserError(f"run config: clients, wait and slack are numbers: {error}") from None
    return Order(Path(folder or _new_folder(config)), bool(run_config.get("resume", False)), clients, wait, slack)


def _new_folder(config: DictConfig) -> str:
    path = time.strftime(f"runs/%Y-%m-%d/%H-%M-%S-{config.name}-{config.seed}")
    names = itertools.chain([path], (f"{path}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not Path(name).exists())


def serve(
    grid: Any,
    run_config: RunConfig,
    watcher: Watcher | None = None,
    orders: Orders = NoOrders(),  # noqa: B008  # it holds nothing
) -> None:
    """Run all rounds with the clients of `grid`, and leave a run's folder. Raises UserError and RunHalted.

    `watcher` hears of each round, beside the config's own tracker, and why a client does not take part. `orders` are
    the operator's.
    """
    config = config_of(run_config)
    order = order_of(run_config, config)
    folder = RunFolder(order.folder)
    resuming = order.resume and folder.config.exists()
    if resuming:
        beginnings.check_streams(folder)
        config = _same(execute.stored(folder), config, folder)
    else:
        folder.check_new()
    told(config)
    config.device = "cpu"
    here = build.tried(config)
    declared = here.shares if isinstance(here.shares, Declared) else None
    if resuming:
        beginnings.begin(folder, here, config)
        if declared is not None:
            declared.recall(folder.declared)
    everyone = len(here.shares)
    clients = order.clients or everyone
    if not 1 <= clients <= everyone:
        raise UserError(f"clients={clients}: there are {everyone}, so wait for 1 to {everyone}")
    terms = Terms.of(agreed(config), here)
    run = _run_id(folder)
    if config.quorum < 1:
        say(f"quorum={config.quorum:g}: rounds are closed without who is late, which is chance: the bits are, too")
    network = FlowerNetwork(
        *(grid, terms, run, config.timeout, everyone, clients, order.wait),
        say=say,
        on_error=config.on_client_error,
        declared=Computed(here.shares) if declared is None else declared,
        refusal=watcher.refused if watcher else lambda reason, client: None,
        slack=order.slack,
        parts=len(here.scratch.shapes),
        pace=build.pace(config),
        ready=orders.ready,
    )
    with on_disk(folder.path, partial(execute.goes_on, folder, remote=True) if resuming else lambda: NOTHING):
        orders.opens(order.folder)
    with settled():
        if not resuming:
            _gather(network)  # before anything is created
            with on_disk(folder.path, lambda: NOTHING):
                if declared is not None:
                    declared.keep(folder.declared)
                beginnings.create(folder, config, here)
        with on_disk(folder.path, partial(execute.goes_on, folder, remote=True)), folder.lock():
            write_atomically(folder.path / RUN_ID, run.hex() + "\n")
            start = _start(folder, config) if resuming else None
            if resuming:
                if declared is not None:
                    declared.keep(folder.declared)
                _gather(network)
                folder.rewind(start.round if start else 0)
                folder.amend(OmegaConf.to_yaml(config))
            execute.rounds(config, folder, network, here, start, None, watcher or NoTracker(), orders)


def _gather(network: FlowerNetwork) -> None:
    network.client_ids()
    say(attendance_table(network.attendance.values()))


def _start(folder: RunFolder, config: DictConfig) -> Checkpoint | None:
    start = execute.last_checkpoint(folder, config)
    if start and not start.remote:
        raise UserError(f"{folder.path}: its clients were simulated: `fedshare resume` goes on with it")
    say(f"going on with {folder.path} after round {start.round if start else 0}")
    return start


def _same(stored: DictConfig, asked: DictConfig, folder: RunFolder) -> DictConfig:
    """The config of a run that goes on: as it was, but for the rounds."""
    before, now = (OmegaConf.to_container(config) for config in (stored, asked))  # the environment is not read
    assert isinstance(before, dict)
    assert isinstance(now, dict)
    for key in map(str, asked):
        if key not in ("rounds", "tracking", "timeout", "device", *asdict(Pace())) and before.get(key) != now[key]:
            raise UserError(
                f"{folder.path} holds a run with another {key}: name another folder, or give the same config"
            )
    asked.tracking = stored.tracking
    return asked


def _run_id(folder: RunFolder) -> bytes:
    """Whose memories clients are to use: as long as the folder lives, the same."""
    path = folder.path / RUN_ID
    try:
        return bytes.fromhex(path.read_text()) if path.exists() else uuid.uuid4().bytes[:8]
    except ValueError:
        raise UserError(f"{path} is damaged: it should hold 16 hexadecimal digits") from None
