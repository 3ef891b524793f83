"""`fedshare client`: from the command line to this host's clients, one process each with a stream to the server.

Nothing here loads torch before a client's device is chosen.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedshare
from fedshare.errors import RunHalted, UserError
from fedshare.experiments.config.own import importable
from fedshare.experiments.hosts import host
from fedshare.experiments.hosts.deploy_options import check_ranges
from fedshare.experiments.hosts.identities import client_identity, client_ids
from fedshare.experiments.signals import terminable
from fedshare.machine import devices
from fedshare.report.clock import tell
from fedshare.transport.stream import sockets
from fedshare.transport.stream.client import StreamClient
from fedshare.transport.stream.diagnose import NotYet, split

_Config = dict[str, str | int | float | bool]


def client(options: argparse.Namespace) -> int:
    """Run this host's clients: a single one in this process, several in child processes."""
    split(options.server)
    check_ranges(options)
    if options.run:
        sockets.run_name(options.run, "--run ")
    importable(options.config_dir)
    ids = client_ids(options)
    gpus = [] if options.gpu == "none" else devices.visible_gpus(os.environ)
    sharing = options.per_gpu, options.gpu_memory, options.threads
    places = devices.places(ids, options.gpu, *sharing, gpus, devices.cores())
    for id in ids:  # report errors of any client before one starts
        client_identity(options, id)
        if options.data and not Path(path := options.data.replace("{id}", str(id))).expanduser().exists():
            raise UserError(f"--data {path}: no such file")
    if len(ids) > 1:
        return host.start({id: command(options, id, places[id]) for id in ids}, places)
    _live(options, ids[0], places[ids[0]])
    return 0


def _live(options: argparse.Namespace, id: int, place: devices.Place) -> None:
    from fedshare.transport.flower import config
    from fedshare.transport.flower.load import App
    from fedshare.transport.flower.stream import live

    devices.apply(place)
    digest, admit = ("", None) if options.app else _insisted(options)

    def load(run_config):  # type: ignore[no-untyped-def]  # flwr's ClientApp
        tell(f"connected to {options.server} as client {id}" + f" of run {options.run}" * bool(options.run))
        if admit is None:
            app = App.at(Path(options.app)).client()
        else:
            admit(run_config)
            from fedshare.app import client_app as app
        devices.limit(place)
        return app

    def stream() -> StreamClient:
        identity = client_identity(options, id)
        for line in identity.endings() if identity else []:
            tell(line)
        return StreamClient(
            options.server,
            id,
            identity,
            fedshare.__version__,
            digest,
            patience=options.patience,
            heartbeat=options.heartbeat,
            say=tell,
            run=options.run or "",
        )

    node_config: _Config = {"device": place.device, "place": str(place), "threads": place.threads}
    if options.state:
        node_config["state-dir"] = str(Path(options.state).absolute())
    if options.weights:
        node_config["weights"] = options.weights
    if options.data:
        node_config["data"] = options.data
    node_config |= config.node_config(options.node_config)  # an app may use our names for its own keys
    with terminable():
        while True:
            try:
                live(stream(), load, node_config)
            except (RunHalted, NotYet) as error:
                if not options.stay:
                    raise
                tell(str(error))
            else:
                tell("the run is over")
            if not options.stay:
                return
            tell("waiting for the next run")


def _insisted(options: argparse.Namespace) -> tuple[str, Callable[[Any], None]]:
    """Return the digest of the required config, if any, and a function that checks the server's config."""
    from fedshare.experiments.config import application, compose
    from fedshare.experiments.config.trust import Trust
    from fedshare.experiments.hosts import agreement

    own = None
    if options.overrides or options.config_name:
        app = application.hydra(options.config_dir)
        own = compose.resolved(options.overrides, options.config_name or "config", app)
    trusted = Trust.of(options.trust, options.config_dir, own)
    whose = f"{options.server}: the server's config"
    digest = "" if own is None else agreement.digest(own)
    return digest, lambda run_config: agreement.admit(run_config, own, trusted, whose)


def command(options: argparse.Namespace, id: int, place: devices.Place) -> list[str]:
    """Return the command line of one client process of this host."""
    program = [sys.executable, *["-P"] * sys.flags.safe_path, "-m", "fedshare"]
    command = [*program, "client", options.server, *options.overrides, "--id", str(id)]
    command += ["--gpu", place.gpu or "none", "--threads", str(place.threads), "--patience", str(options.patience)]
    command += ["--heartbeat", str(options.heartbeat)]
    given = {
        "--config-name": options.config_name,
        "--config-dir": options.config_dir,
        "--keys": options.keys,
        "--state": options.state,
        "--weights": options.weights,
        "--data": options.data,
        "--app": options.app,
        "--run": options.run,
        "--gpu-memory": place.memory,
    }
    for flag, value in given.items():
        command += [flag, str(value)] if value is not None else []
    for package in options.trust:
        command += ["--trust", package]
    for text in options.node_config:
        command += ["--node-config", text]
    return command + ["--insecure"] * options.insecure + ["--stay"] * options.stay
