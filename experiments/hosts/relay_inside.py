"""A relay in the process of one of its peers."""

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedshare.experiments.hosts import deploy_options
from fedshare.experiments.hosts.relay import attend, running
from fedshare.machine.files import private_folder
from fedshare.report.clock import say
from fedshare.transport.stream.diagnose import split

_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


def reached(listen: str) -> str:
    """Return the address at which a relay that listens there is reached from this host."""
    host, port = split(listen)
    return f"{_ANY.get(host, host)}:{port}"


@contextmanager
def inside(options: argparse.Namespace, folder: Path, peers: int) -> Iterator[None]:
    """Keep a relay for `peers` as long as the block lasts, and then until the others are gone, or `--wait` is over."""
    private_folder(folder)
    given = ["--log", str(folder), "--listen", options.with_relay, "--peers", str(peers)]
    given += ["--min-peers", str(min(2, peers)), "--heartbeat", str(options.heartbeat)]
    given += ["--keys", options.keys] if options.keys else []
    given += ["--insecure"] * options.insecure
    with running(deploy_options.parser("relay").parse_args(given), folder) as server:
        threading.Thread(target=attend, args=(server, folder), name="relay orders", daemon=True).start()
        yield
        until = time.monotonic() + options.wait
        while (others := len(server.host.sessions)) and time.monotonic() < until:
            say(f"the relay in this process goes on for {others} peers")
            time.sleep(min(2.0, options.wait))
