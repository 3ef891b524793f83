"""`fedshare peers`: how the links of a running peer are doing."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from fedshare.errors import UserError
from fedshare.experiments.hosts.identities import identity_of
from fedshare.identity.identity import Identity
from fedshare.report.units import human_bytes, human_seconds
from fedshare.transport.mesh.rendezvous import status
from fedshare.transport.mesh.state import LinkState, State

_TITLES = ("peer", "link", "round", "behind", "sent", "received", "address", "")


def peers(options: argparse.Namespace) -> int:
    """Print a table of a peer's links, or JSON."""
    state = status(options.address, _identity(options))
    print(json.dumps(asdict(state)) if options.json else "\n".join(_table(state)))
    return 0


def _identity(options: argparse.Namespace) -> Identity | None:
    """Return the certificate to show: that of the folder, or of any participant below it."""
    if not options.keys or any(Path(options.keys).glob("*.crt")):
        return identity_of(options.keys, "server", options.address, options.insecure)
    below = sorted(path.parent for path in Path(options.keys).glob("*/*.key") if path.stem in ("client", "server"))
    if not below:
        raise UserError(f"--keys {options.keys}: holds no certificate; `fedshare keys` makes it")
    return Identity.load(below[0])


def _table(state: State) -> list[str]:
    lasted = f", {human_seconds(state.round_seconds)} a round" if state.round_seconds else ""
    begun = f"in round {state.entered}{lasted}" if state.entered else "has not begun"
    rows = [_TITLES, *(_row(link, state) for link in state.links)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [f"peer {state.peer} of run {state.run[:12]}, fedshare {state.version}: {begun}", *lines]


def _row(link: LinkState, state: State) -> tuple[str, ...]:
    held = f"open since {link.opened}" if link.opened else "closed"
    where = held if link.connected else f"{held}, not connected"
    behind = str(max(0, state.entered - link.entered)) if link.entered else "-"
    counts = str(link.entered or "-"), behind, human_bytes(link.sent), human_bytes(link.received)
    return (str(link.peer), where, *counts, link.address or "-", link.said)
