"""`fedshare gate`, `flower-run` and `doctor`: from the command line to the implementation."""

import argparse
from pathlib import Path

from fedshare.experiments.hosts.deploy_options import check_ranges
from fedshare.experiments.hosts.identities import identity_of
from fedshare.experiments.signals import terminable


def gate(options: argparse.Namespace) -> int:
    """Serve one port for several runs."""
    from fedshare.experiments.hosts.gate import gate

    check_ranges(options)
    return gate(options, identity_of(options.keys, "server", options.listen, options.insecure))


def peer(options: argparse.Namespace) -> int:
    """Run one peer of a run without a server."""
    from fedshare.experiments.hosts.peer import peer

    return peer(options)


def peers(options: argparse.Namespace) -> int:
    """Print how the links of a running peer are doing."""
    from fedshare.experiments.hosts.peers_status import peers

    return peers(options)


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
    """Print the problems found, one line each; return 0 if there are none."""
    from fedshare.experiments.commands.doctor import examine

    if options.server and "=" in options.server:  # an override: no address was given
        options.overrides, options.server = [options.server, *options.overrides], None
    return examine(options)
