"""`fedshare server`, `client` and `flower-run`: from the command line to a Flower app on one of our Grids.

Nothing here loads torch before a client's device is chosen.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import fedshare
from fedshare.errors import RunHalted, UserError, brief
from fedshare.experiments.config.own import importable
from fedshare.experiments.hosts import host
from fedshare.experiments.hosts.deploy_options import check_ranges
from fedshare.experiments.signals import terminable
from fedshare.identity import marks
from fedshare.identity.keys import Identity, place
from fedshare.machine import devices
from fedshare.report.clock import say, tell
from fedshare.transport.stream import sockets
from fedshare.transport.stream.client import StreamClient
from fedshare.transport.stream.diagnose import NotYet, is_local, split

_Config = dict[str, str | int | float | bool]


def server(options: argparse.Namespace) -> int:
    """Run a strategy, or with --app anybody's ServerApp, with the clients that connect."""
    from fedshare.experiments.hosts import gate as gates
    from fedshare.experiments.hosts.desk import Desk
    from fedshare.identity.admission import Admission
    from fedshare.transport.flower import config
    from fedshare.transport.flower.load import App, serve
    from fedshare.transport.flower.stream import StreamGrid
    from fedshare.transport.stream import descriptors
    from fedshare.transport.stream.server import Settings, StreamServer

    descriptors.raise_limit()
    gates.check(options)
    identity = None if options.gate else _identity(options.keys, "server", options.listen, options.insecure)
    if identity and identity.client_id is not None:
        raise UserError(f"--keys {options.keys}: that is client {identity.client_id}'s folder, not the server's")
    check_ranges(options)
    admission = Admission.of(identity.folder if identity else None, options.deny, options.allow, say)
    exporter = None
    if options.metrics:
        from fedshare.experiments.hosts.prometheus import Exporter

        exporter = Exporter()
    desk = Desk(options.audit, exporter)
    if options.app:
        app = App.at(Path(options.app))
        run_config = config.run_config(options.run_config, app.config)
        if not options.clients:
            raise UserError("--clients: say how many clients the app is for, as in --clients 3")
        told, digest, clients, run = dict(run_config), "", options.clients, app.server
    else:
        if options.run_config:
            raise UserError("--run-config: is for --app; a strategy takes GROUP=OPTION and KEY=VALUE")
        run_config, told, digest, clients = _ours(options)
        run = partial(_our_server_app, desk)
    settings = Settings(
        version=fedshare.__version__,
        config=json.dumps(told),
        config_sha256=digest,
        clients=clients,
        heartbeat=options.heartbeat,
        grace=options.grace,
        awaited=options.clients or 0,
        callers=options.callers,
        name=options.name or "",
    )
    with ExitStack() as stack:
        if exporter:
            say(f"metrics at {exporter.listen(options.metrics)}")
            stack.callback(exporter.close)
        address = stack.enter_context(gates.address(options, max(clients, options.clients or 0)))
        stream = StreamServer(address, identity, settings, say)
        stream.admission = admission
        if exporter:
            exporter.watch(stream.present, stream.connections)
        stream.explain()
        stack.enter_context(desk)
        desk.serve(stream, "" if options.app else str(run_config["folder"]))
        stream.start()
        security = f"run {options.name} of the gate" if options.gate else "mutual TLS" if identity else "no TLS"
        say(f"listening on {stream.address}, {security}")
        farewell: str | None = None
        try:
            with terminable():
                grid = StreamGrid(stream)
                if options.app:  # ours waits by itself, and goes on waiting in each round
                    grid.wait_for(clients, options.wait)
                serve(run(), grid, run_config)
            farewell = ""
        except RunHalted as error:  # other errors are the operator's, who will start the server again: clients wait
            farewell = brief(str(error))
            if not desk.stopped:
                raise
            say(f"{error}{desk.goes_on}")
        finally:
            stream.close(farewell)
    return 0


def _our_server_app(desk):  # type: ignore[no-untyped-def]  # flwr's ServerApp, which stops at fedshare.transport.flower
    from fedshare.experiments.hosts.federation import serve
    from fedshare.transport.flower.apps import server_app

    return server_app(partial(serve, watcher=desk, orders=desk))


def _ours(options: argparse.Namespace) -> tuple[_Config, _Config, str, int]:
    """Run config, the part that clients are told, the digest of what they must share, and how many they are."""
    from omegaconf import OmegaConf

    from fedshare.experiments import beginnings
    from fedshare.experiments.config import application, compose
    from fedshare.experiments.config.stored import stored
    from fedshare.experiments.config.trust import Trust
    from fedshare.experiments.hosts import federation
    from fedshare.runs import RunFolder

    if options.resume and "=" in options.resume:  # argparse takes the word behind --resume for its folder
        options.overrides.insert(0, options.resume)
        options.resume = ""
    app = application.hydra(options.config_dir)
    named = compose.folder(options.overrides, options.config_name, app)
    if options.resume and named and Path(options.resume) != Path(named):
        raise UserError(f"--resume {options.resume} and folder={named}: name one folder")
    folder = options.resume or named or ""
    if options.resume == "" and not folder:
        raise UserError("--resume: name the run's folder, as in --resume FOLDER or folder=FOLDER")
    resuming = options.resume is not None and RunFolder(folder).config.exists()
    if resuming:
        beginnings.check_streams(RunFolder(folder))
    composed = partial(compose.resolved, options.overrides, options.config_name, app)
    if resuming:
        own = composed() if options.overrides else None
        before = stored(RunFolder(folder), trusted=Trust.of(options.trust, options.config_dir, own))
        config = before if own is None else own
    else:
        config = composed()
    if options.resume is None and folder:
        RunFolder(folder).check_new()
    text = OmegaConf.to_yaml(config)
    run_config: _Config = {"config": text, "folder": folder, "wait": options.wait, "slack": options.slack}
    run_config |= {"resume": options.resume is not None, "clients": options.clients or 0}
    told: _Config = {"config": (words := federation.told(config))}
    with suppress(OSError):  # a user who can have no key
        told["mark"] = marks.mark(words)
    return run_config, told, federation.digest(config), config.partition.get("clients") or 0


def client(options: argparse.Namespace) -> int:
    """Be the clients of this host: this process the one, or the parent of several."""
    split(options.server)
    check_ranges(options)
    if options.run:
        sockets.run_name(options.run, "--run ")
    importable(options.config_dir)
    ids = _ids(options)
    gpus = [] if options.gpu == "none" else devices.visible_gpus(os.environ)
    sharing = options.per_gpu, options.gpu_memory, options.threads
    places = devices.places(ids, options.gpu, *sharing, gpus, devices.cores())
    for id in ids:  # what is wrong with one is said before any starts
        _client_identity(options, id)
        if options.data and not Path(path := options.data.replace("{id}", str(id))).expanduser().exists():
            raise UserError(f"--data {path}: no such file")
    if len(ids) > 1:
        return host.start({id: _command(options, id, places[id]) for id in ids}, places)
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
        identity = _client_identity(options, id)
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
    node_config |= config.node_config(options.node_config)  # an app may have keys of its own by our names
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
    """The digest of the config that the client insists on, where it does; and what lets a server's config in."""
    from fedshare.experiments.config import application, compose
    from fedshare.experiments.config.trust import Trust
    from fedshare.experiments.hosts import federation

    own = None
    if options.overrides or options.config_name:
        app = application.hydra(options.config_dir)
        own = compose.resolved(options.overrides, options.config_name or "config", app)
    trusted = Trust.of(options.trust, options.config_dir, own)
    whose = f"{options.server}: the server's config"
    digest = "" if own is None else federation.digest(own)
    return digest, lambda run_config: federation.admit(run_config, own, trusted, whose)


def _command(options: argparse.Namespace, id: int, place: devices.Place) -> list[str]:
    """What the process of one client of this host is started with."""
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


def _ids(options: argparse.Namespace) -> list[int]:
    if options.id is None:
        if options.keys and (Path(options.keys) / "client.crt").exists():
            identity = Identity.load(Path(options.keys))
            if identity.client_id is not None:
                return [identity.client_id]
        raise UserError("--id: say which clients this host is, as in --id 0 or --id 0,1,2")
    parts = options.id.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise UserError(f"--id {options.id}: is not a list of client numbers such as 0,1,2")
    return [int(part) for part in parts]


def _client_identity(options: argparse.Namespace, id: int) -> Identity | None:
    identity = _identity(options.keys, f"client-{id}", options.server, options.insecure)
    if identity and identity.client_id != id:
        raise UserError(f"--keys {options.keys}: its certificate is client {identity.client_id}'s, not client {id}'s")
    return identity


def _identity(keys: str | None, name: str, address: str, insecure: bool) -> Identity | None:
    """The certificate to use; None where none is needed: on this machine, or by --insecure."""
    if keys:
        folder = Path(keys)
        if not (folder / name).is_dir() and not any(folder.glob("*.crt")):
            raise UserError(f"--keys {keys}: holds no certificate of {name}; `fedshare keys` makes it")
        return Identity.load(place(folder, name))
    if insecure or is_local(split(address)[0]):
        return None
    raise UserError(f"{address}: off this machine it takes TLS: --keys DIR (`fedshare keys` makes one), or --insecure")


def gate(options: argparse.Namespace) -> int:
    """Be the port of several runs."""
    from fedshare.experiments.hosts.gate import gate

    check_ranges(options)
    return gate(options, _identity(options.keys, "server", options.listen, options.insecure))


def flower_run(options: argparse.Namespace) -> int:
    """Run any Flower app in this process, without Ray."""
    from fedshare.transport.flower import config
    from fedshare.transport.flower.inprocess import InProcessGrid
    from fedshare.transport.flower.load import App, serve

    check_ranges(options)
    app = App.at(Path(options.app))
    run_config = config.run_config(options.run_config, app.config)
    node_config = config.node_config(options.node_config)
    with terminable():
        server = app.server()
        serve(server, InProcessGrid(app.client(), options.nodes, run_config, node_config, options.wait), run_config)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what stands in the way, a line each; 0 where nothing does."""
    from fedshare.experiments.commands.doctor import examine

    if options.server and "=" in options.server:  # an override: no address is given
        options.overrides, options.server = [options.server, *options.overrides], None
    return examine(options)
