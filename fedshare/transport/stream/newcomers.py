"""The connections of a port before their first call: how many there may be, and why they end without one."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import grpc

from fedshare.machine.tally import Tally
from fedshare.transport.stream import callers, grpc_log
from fedshare.transport.stream.callers import Callers, Peer
from fedshare.transport.stream.handshakes import Handshakes


class Newcomers:
    """`secure`: whether there is TLS. `ended` is called, too, with the peer and the reason of a connection's end.

    `begins` is called before each handshake; the rest in the event loop.
    """

    def __init__(self, secure: bool, tally: Tally, ended: Callable[[Peer | None, str], None] | None = None) -> None:
        self._secure, self._tally, self._ended = secure, tally, ended
        self._handshakes = Handshakes(lambda: callers.connected(self._port), self._unheard)
        self.begins = self._handshakes.begins
        self._port = 0
        self._due: asyncio.TimerHandle | None = None
        self.callers: Callers

    def watch(self, port: int, clients: int, each: int, most: int, also: Callable[[], None] = lambda: None) -> None:
        """Limit the connections of `port` from now on; `also` is called at each look.

        `clients` may come at once, `each` connections of one address may be open without a greeting, and `most` in all.
        """
        self._port = port
        in_all = min(8 * each, most - clients)
        self.callers = Callers(port, clients, min(each, in_all), in_all, most, self._tally)
        self._also = also
        self._sweep()

    def close(self) -> None:
        if self._due:
            self._due.cancel()

    def explain(self) -> None:
        """Say why handshakes fail, where this process reads gRPC's log: see `grpc_log.captured`. In any thread."""
        self._handshakes.informed = grpc_log.listen(self._handshakes.failed)

    def speaks(self, context: grpc.aio.ServicerContext) -> None:
        """A call has come on a connection."""
        if self._secure:
            self._handshakes.speaks(callers.peer_of(context.peer()))

    def greeted(self, context: grpc.aio.ServicerContext) -> AbstractContextManager[None]:
        return self.callers.greeted(context.peer())

    def _unheard(self, peer: Peer | None, reason: str) -> None:
        """A connection has ended before any call."""
        place = callers.one_place(peer[0]) if peer else "others"
        self._tally.say(place, f"{place}: {reason}")
        if self._ended:
            self._ended(peer, reason)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.callers.sweep()
        self._handshakes.sweep()
        self._tally.flush()
        self._also()
        self._due = loop.call_later(max(callers.SWEEP, callers.SHARE * (loop.time() - began)), self._sweep)
