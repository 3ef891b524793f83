"""Who listens at an address, and what it says of itself, whichever of our services it is; nobody is disturbed."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import grpc

from fedshare.errors import UserError
from fedshare.identity.certificates import peer_host
from fedshare.identity.identity import Identity
from fedshare.transport.mesh.rendezvous import who_is
from fedshare.transport.stream import tls
from fedshare.transport.stream.diagnose import NotYet, reach
from fedshare.transport.stream.health import health, said_nothing


@dataclass(frozen=True)
class Found:
    """`peer`: the peer that its certificate names, if it names one."""

    service: str  # its full name
    health: str
    peer: int | None = None

    @property
    def name(self) -> str | None:
        """The host that its certificate must name, if that is not the one of the address."""
        return None if self.peer is None else peer_host(self.peer)


@dataclass(frozen=True)
class Said:
    """`ahead`: seconds by which this host's clock is ahead, to within `doubt`; None: the other tells no time."""

    answer: bytes
    ahead: float | None
    doubt: float


def reached(address: str, identity: Identity | None) -> int | None:
    """Connect as a client would, and hang up. Return the number of the peer that is there, if its certificate has one.

    Raises NotYet, or UserError where waiting would not help.
    """
    try:
        reach(address, identity)
    except NotYet:
        raise
    except UserError:
        if identity is None:
            raise
        try:
            peer = who_is(address, identity)
        except UserError:
            peer = None
        if peer is None:
            raise
        reach(address, identity, peer_host(peer))
        return peer
    return None


def find(address: str, identity: Identity | None, services: Collection[str], deadline: float) -> Found:
    """Return which of the services is there. Raises NotYet, or UserError where waiting would not help."""
    found = Found("", "", reached(address, identity))
    for service in services:
        if said := health(address, identity, deadline, service, found.name):
            return Found(service, said, found.peer)
    raise NotYet(f"{address}: what listens there is no fedshare server, peer or relay")


def ask(address: str, identity: Identity | None, found: Found, method: str, deadline: float) -> Said:
    """Ask for `method`, which takes no argument. Raises NotYet."""
    with tls.channel(address, identity, deadline, found.name) as channel:
        before = time.time()
        try:
            answer, state = channel.unary_unary(method).with_call(b"", timeout=deadline, wait_for_ready=True)
        except grpc.RpcError as error:
            raise said_nothing(address, error, deadline) from None
        after = time.time()
    trailing: dict[str, Any] = dict(state.trailing_metadata() or ())
    ahead = (before + after) / 2 - float(trailing["time"]) if "time" in trailing else None
    return Said(answer, ahead, (after - before) / 2)
