"""`fedshare gate`: one port for the servers of several runs."""

import argparse
import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedshare.errors import UserError
from fedshare.identity.identity import Identity
from fedshare.report.clock import say
from fedshare.transport.stream import descriptors, sockets
from fedshare.transport.stream.gate import Gate, Settings

LISTEN = "127.0.0.1:9443"
STOPPED = 130


def gate(options: argparse.Namespace, identity: Identity | None) -> int:
    """Forward connections to the runs in a folder until a signal arrives; return the exit status."""
    if identity and identity.client_id is not None:
        raise UserError(f"--keys {options.keys}: that is client {identity.client_id}'s folder, not the server's")
    descriptors.raise_limit()
    folder = sockets.folder(options.socket)
    settings = Settings(heartbeat=options.heartbeat, callers=options.callers)
    return asyncio.run(_serve(Gate(options.listen, identity, folder, settings, say), folder))


async def _serve(gate: Gate, folder: Path) -> int:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    await gate.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    say(f"listening on {gate.address}, {gate.security}, for the runs in {folder}")
    try:
        await stopped.wait()
    finally:
        await gate.close()
    say("stopped; clients wait for a gate")
    return STOPPED


@contextmanager
def address(options: argparse.Namespace, clients: int) -> Iterator[str]:
    """Yield the address of a run's server: its port, or the socket where a gate finds it."""
    if not options.gate:
        yield options.listen
        return
    with sockets.taken(sockets.folder(options.gate), options.name, clients) as path:
        yield f"unix:{path}"


def check(options: argparse.Namespace) -> None:
    """Raise UserError if the flags of a server are inconsistent."""
    if options.name:
        sockets.run_name(options.name, "--name ")
    if not options.gate:
        options.listen = options.listen or LISTEN
        return
    if not options.name:
        raise UserError("--gate: say by which name clients ask for this run, as in --name first")
    for flag in ("listen", "keys", "insecure"):
        if getattr(options, flag):
            raise UserError(f"--{flag}: is the gate's affair: leave it out with --gate")
