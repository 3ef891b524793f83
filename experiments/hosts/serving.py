"""`fedshare server`: from the command line to a Flower app on a Grid over our streams."""

import argparse
import json
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import fedshare
from fedshare.errors import RunHalted, UserError, brief
from fedshare.experiments.hosts.deploy_options import check_ranges
from fedshare.experiments.hosts.identities import identity_of
from fedshare.experiments.signals import terminable
from fedshare.identity import marks
from fedshare.report.clock import say

_Config = dict[str, str | int | float | bool]


def server(options: argparse.Namespace) -> int:
    """Run a strategy, or with --app any ServerApp, with the clients that connect."""
    from fedshare.experiments.hosts import gate as gates
    from fedshare.experiments.hosts.desk import Desk
    from fedshare.identity.admission import Admission
    from fedshare.transport.flower import config
    from fedshare.transport.flower.load import App, serve
    from fedshare.transport.flower.stream import StreamGrid
    from fedshare.transport.stream import descriptors
    from fedshare.transport.stream.server import StreamServer
    from fedshare.transport.stream.settings import Settings

    descriptors.raise_limit()
    gates.check(options)
    identity = None if options.gate else identity_of(options.keys, "server", options.listen, options.insecure)
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
        run_config, told, digest, clients = asked(options)
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
        stream.entrance.admission = admission
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
                if options.app:  # ours does the waiting itself, also within rounds
                    grid.wait_for(clients, options.wait)
                serve(run(), grid, run_config)
            farewell = ""
        except RunHalted as error:  # on other errors the operator restarts the server, and clients wait
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


def asked(options: argparse.Namespace) -> tuple[_Config, _Config, str, int]:
    """Return the run config, its part for clients, the digest that they must match, and the number of clients."""
    from omegaconf import OmegaConf

    from fedshare.experiments import beginnings
    from fedshare.experiments.config import application, compose
    from fedshare.experiments.config.stored import stored
    from fedshare.experiments.config.trust import Trust
    from fedshare.experiments.hosts import agreement
    from fedshare.runs import RunFolder

    if options.resume and "=" in options.resume:  # argparse takes the word after --resume for its folder
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
    told: _Config = {"config": (words := agreement.told(config))}
    with suppress(OSError):  # a user without a key
        told["mark"] = marks.mark(words)
    return run_config, told, agreement.digest(config), config.partition.get("clients") or 0
