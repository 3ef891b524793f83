"""A run whose clients are on a Flower Grid: the work of our ServerApp."""

import uuid
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError
from fedshare.experiments import beginnings
from fedshare.experiments.config import build
from fedshare.experiments.config.schema import MAY_CHANGE, MEANT
from fedshare.experiments.config.stored import stored
from fedshare.experiments.hosts.agreement import RunConfig, agreed, config_of, told
from fedshare.experiments.hosts.orders import NoOrders, Orders
from fedshare.experiments.hosts.server_config import order_of
from fedshare.experiments.running.going_on import goes_on, last_checkpoint
from fedshare.experiments.running.rounds import rounds
from fedshare.experiments.tracking import NoTracker, Watcher
from fedshare.machine.files import on_disk, write_atomically
from fedshare.machine.garbage import settled
from fedshare.population import Computed
from fedshare.report.attendance import attendance_table
from fedshare.report.clock import say
from fedshare.runs import NOTHING, RunFolder
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Declared
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Terms

RUN_ID = "run-id"  # the file in a run's folder with the id that clients know it by


def serve(
    grid: Any,
    run_config: RunConfig,
    watcher: Watcher | None = None,
    orders: Orders = NoOrders(),  # noqa: B008  # it holds nothing
) -> None:
    """Run all rounds with the clients of `grid`, and write a run's folder. Raises UserError and RunHalted.

    `watcher` is told of each round, like the config's tracker, and why a client does not take part. `orders` are the
    operator's.
    """
    config = config_of(run_config)
    if config.engine not in ("auto", "plain"):
        raise UserError(f"engine={config.engine}: is for simulations; the clients of a deployment are trained by plain")
    if config.peers != MEANT["peers"]:
        raise UserError("peers: graphs of peers are for simulations; a deployment has a server: peers=none")
    if config.links != MEANT["links"]:
        raise UserError("links: are for simulations; a deployment's are the real ones: links=none")
    config.engine = "plain"
    if config.cluster != MEANT["cluster"]:
        raise UserError("cluster: is for simulations; the clients of a deployment run on their own hosts: cluster=none")
    order = order_of(run_config, config)
    folder = RunFolder(order.folder)
    resuming = order.resume and folder.config.exists()
    if resuming:
        beginnings.check_streams(folder)
        config = _same(stored(folder), config, folder)
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
    with on_disk(folder.path, partial(goes_on, folder, remote=True) if resuming else lambda: NOTHING):
        orders.opens(order.folder)
    with settled():
        if not resuming:
            _gather(network)  # before anything is created
            with on_disk(folder.path, lambda: NOTHING):
                if declared is not None:
                    declared.keep(folder.declared)
                beginnings.create(folder, config, here)
        with on_disk(folder.path, partial(goes_on, folder, remote=True)), folder.lock():
            write_atomically(folder.path / RUN_ID, run.hex() + "\n")
            start = _start(folder, config) if resuming else None
            if resuming:
                if declared is not None:
                    declared.keep(folder.declared)
                _gather(network)
                folder.rewind(start.round if start else 0)
                folder.amend(OmegaConf.to_yaml(config))
            rounds(config, folder, network, here, start, None, watcher or NoTracker(), orders)


def _gather(network: FlowerNetwork) -> None:
    network.client_ids()
    say(attendance_table(network.attendance.values()))


def _start(folder: RunFolder, config: DictConfig) -> Checkpoint | None:
    start = last_checkpoint(folder, config)
    if start and not start.remote:
        raise UserError(f"{folder.path}: its clients were simulated: `fedshare resume` goes on with it")
    say(f"going on with {folder.path} after round {start.round if start else 0}")
    return start


def _same(began: DictConfig, asked: DictConfig, folder: RunFolder) -> DictConfig:
    """Return the config of a resumed run: unchanged, except for the keys that may change."""
    before, now = (OmegaConf.to_container(config) for config in (began, asked))  # the environment is not read
    assert isinstance(before, dict)
    assert isinstance(now, dict)
    for key in map(str, asked):
        if key not in MAY_CHANGE and before.get(key) != now[key]:
            raise UserError(
                f"{folder.path} holds a run with another {key}: name another folder, or give the same config"
            )
    asked.tracking = began.tracking
    return asked


def _run_id(folder: RunFolder) -> bytes:
    """Return the id under which clients store memories: constant as long as the folder exists."""
    path = folder.path / RUN_ID
    try:
        return bytes.fromhex(path.read_text()) if path.exists() else uuid.uuid4().bytes[:8]
    except ValueError:
        raise UserError(f"{path} is damaged: it should hold 16 hexadecimal digits") from None
