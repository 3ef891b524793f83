"""Callers that have connected and have not said which client they are, and how many of them there may be.

gRPC does not report a connection before its first call; this process's own file descriptors show it.
"""

import ipaddress
import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote

from fedshare.machine.tally import Tally

SWEEP = 0.25  # seconds between two looks at the connections,
SHARE = 10  # and at least this many times as long as a look takes, so that clients are heard meanwhile
_FOLDER = "/dev/fd"  # on a system without it only deadlines and gRPC's limit on connections apply
Peer = tuple[str, int]  # address and port


class Callers:
    """The connections to `port`. Beyond the bounds the oldest are closed first: a new one may still greet.

    `each` connections of one address may be open without a greeting, `in_all` of all addresses, and in addition one for
    each of the `clients` that has not come yet: those behind one address may come at once. gRPC takes `most` in all.
    """

    def __init__(self, port: int, clients: int, each: int, in_all: int, most: int, tally: Tally) -> None:
        self._port, self._each, self._in_all, self._most = port, each, in_all, most
        self.clients = clients
        self._tally = tally
        self._greeted = Counter[Peer]()  # by connection: how many of its streams have greeted
        self._waiting: list[Peer] = []  # connections without a greeting, in the order in which they were first seen

    @contextmanager
    def greeted(self, peer: str) -> Iterator[None]:
        """Count a stream of `peer` (as gRPC writes it) as greeted, while the context lasts."""
        known = _peer(peer)
        self._greeted[known] += 1
        try:
            yield
        finally:
            self._greeted[known] -= 1
            if not self._greeted[known]:
                del self._greeted[known]

    def sweep(self) -> None:
        with suppress(OSError):
            names = os.listdir(_FOLDER)
            # Otherwise they are few, whatever they are.
            if len(names) - len(self._greeted) > self._each or len(names) >= self._most:
                self._limit(_connections(self._port, names))

    def _limit(self, found: dict[Peer, int]) -> None:
        if len(found) >= self._most:
            line = f"all {self._most} connections are taken for which there are file descriptors: raise RLIMIT_NOFILE"
            self._tally.say("connections", line)
        waiting = [peer for peer in self._waiting if peer in found and peer not in self._greeted]
        known = {*waiting, *self._greeted}
        self._waiting = waiting = waiting + [peer for peer in found if peer not in known]
        missing = max(0, self.clients - len(self._greeted))
        of_one = Counter(one_place(address) for address, _ in waiting)
        in_all = len(waiting)
        for peer in waiting:
            place = one_place(peer[0])
            if of_one[place] > self._each + missing:
                bound = f"{self._each + missing} of one address"
            elif in_all > self._in_all + missing:
                bound = f"{self._in_all + missing} in all"
            else:
                continue
            of_one[place] -= 1
            in_all -= 1
            self._tally.say(place, f"{place}: closed a connection without a greeting; at most {bound} may be open")
            with suppress(OSError), _held(found[peer]) as one:  # it may be over already, or the number be another's
                if _caller(one, self._port) == peer:
                    one.shutdown(socket.SHUT_RDWR)  # gRPC, which owns the descriptor, sees that it has ended


def connected(port: int) -> set[Peer]:
    """The peers with a connection to `port`. Raises OSError where the system does not list them."""
    return set(_connections(port, os.listdir(_FOLDER)))


def peer_of(text: str) -> Peer:
    """Address and port of a peer as gRPC writes it."""
    return _peer(text)


def _connections(port: int, names: list[str]) -> dict[Peer, int]:
    """The file descriptors of this process that are connections to `port`, by peer."""
    found = {}
    for name in names:
        with suppress(OSError):  # closed meanwhile, or no connection
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with _held(int(name)) as one:
                    if peer := _caller(one, port):
                        found[peer] = int(name)
    return found


@contextmanager
def _held(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor, by a duplicate: the number may be another socket's in a moment, the duplicate not.

    One at a time, for each takes a descriptor.
    """
    own = os.dup(descriptor)
    try:
        one = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise
    with one:
        yield one


def _caller(one: socket.socket, port: int) -> Peer | None:
    """The peer of a connection to `port`; None where the socket is another. Raises OSError where it has ended."""
    if one.family not in (socket.AF_INET, socket.AF_INET6) or one.getsockname()[1] != port:
        return None
    address, number, *_ = one.getpeername()
    return _plain(address), number


def _peer(text: str) -> Peer:
    """Address and port of "ipv4:192.0.2.7:4242" or "ipv6:%5B2001:db8::7%5D:4242"."""
    address, _, port = unquote(text.partition(":")[2]).rpartition(":")
    return (_plain(address.strip("[]")), int(port)) if port.isdigit() else (text, 0)


def _plain(address: str) -> str:
    """`address` in its one canonical form: without a zone; an IPv4 address mapped into IPv6 as IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def address_of(peer: str) -> str:
    """The address of a peer as gRPC writes it."""
    return _peer(peer)[0]


def place_of(peer: str) -> str:
    """What counts as one address, of a peer as gRPC writes it."""
    return one_place(_peer(peer)[0])


def one_place(address: str) -> str:
    """What counts as one address: of IPv6 the /64 network, for a single host has 2^64 addresses."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # as of a socket of the file system
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address
