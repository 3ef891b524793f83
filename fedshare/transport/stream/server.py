"""The server's end of the stream, for its user in any thread: who is there, messages to them, and their answers.

gRPC runs in a thread of its own; a user of a `StreamServer` never waits for a network.
"""

import asyncio
import contextlib
import itertools
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence

from fedshare.errors import UserError
from fedshare.identity.identity import Identity
from fedshare.transport.stream import descriptors, tls
from fedshare.transport.stream.entrance import Entrance
from fedshare.transport.stream.frames import Buffer, filled
from fedshare.transport.stream.host import Host
from fedshare.transport.stream.journal import Journal
from fedshare.transport.stream.mailbox import Message, Response
from fedshare.transport.stream.members import Members
from fedshare.transport.stream.service import CLOSE_DEADLINE
from fedshare.transport.stream.settings import Settings


class StreamServer:
    """Listens at `address` ("host:port"; port 0: any that is free) from `start` to `close`.

    At "unix:PATH" a gate connects, and tells whose calls it passes on. `journal` makes known what happens, `entrance`
    decides who is let in: both may be changed before `start`, the operator's bans at any time.
    """

    def __init__(
        self, address: str, identity: Identity | None, settings: Settings, say: Callable[[str], None] = print
    ) -> None:
        self.address = address
        self.settings = settings
        self.journal = Journal(say, settings.quiet)
        self.entrance = Entrance(settings, self.journal, self._review)
        self._gated = address.startswith("unix:")
        self._responses: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._tickets = itertools.count(1)
        self._sent: deque[tuple[int, Message]] = deque()  # what the stream's thread has not seen yet
        self._notified = False  # whether it knows that there is some
        self._suspended: Collection[int] = ()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stream", daemon=True)
        epoch = secrets.token_bytes(8)
        self.members = Members(self._loop, settings, epoch, self.journal, self._responses.put)
        renewed = tls.Renewed(identity, say) if identity else None
        self._host = Host(self._loop, settings, renewed, self.journal, self.entrance, self.members)

    def start(self) -> None:
        """Raises UserError where the address cannot be had, or file descriptors are too few for the clients."""
        ours = self.settings
        try:
            room = descriptors.room(0 if self._gated else max(ours.clients, ours.awaited), ours.reserve)
        except UserError:
            self._loop.close()
            raise
        self._thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._host.listen(self.address, room), self._loop).result(30)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        if not self._gated:
            self.address = f"{self.address.rpartition(':')[0]}:{port}"

    def close(self, farewell: str | None = None) -> None:
        """Hang up. With `farewell` clients hear that the work is done, and why if not ""; without it they come back."""
        if self._loop.is_running():
            with contextlib.suppress(TimeoutError):  # then clients find out by themselves
                asyncio.run_coroutine_threadsafe(self._host.close(farewell), self._loop).result(CLOSE_DEADLINE * 3)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_DEADLINE)
            self._loop.close()

    def explain(self) -> None:
        """Say why handshakes fail, where this process reads gRPC's log: see `grpc_log.captured`."""
        self._host.explain()

    # Who is there.

    def present(self) -> list[int]:
        """The clients that are connected, or were a moment ago, sorted; without those that are suspended."""
        return sorted(self.members.present.difference(self._suspended))

    def connected(self) -> list[int]:
        """The clients that are connected now, sorted."""
        return sorted(member.id for member in self.members.connected())

    def connections(self) -> int:
        """How many clients are connected."""
        return len(self.members.connected())

    def wait_for_change(self, timeout: float) -> None:
        """Until a client comes, goes or is refused."""
        self.journal.changed.wait(timeout)
        self.journal.changed.clear()

    def suspend(self, clients: Collection[int]) -> None:
        """Count these, and no others, as not there; they stay connected."""
        self._suspended = frozenset(clients)
        self.journal.changed.set()

    def expel(self, client: int, reason: str) -> None:
        """End the connection of a client at once; it hears why, and what it was to answer fails with that."""
        self._loop.call_soon_threadsafe(self.members.expel, client, reason)

    # Messages.

    def send(self, client: int, buffers: Sequence[Buffer], limit: int | None = None) -> int:
        """Send what `buffers` hold to `client`, after what was sent before; return a ticket for the response.

        `limit`: the bytes that the answer may have; without it those of the settings.
        """
        message = Message(next(self._tickets), filled(buffers), limit=limit)
        self._sent.append((client, message))
        if not self._notified:  # once for many: each time costs a system call, and a change of threads
            self._notified = True
            self._loop.call_soon_threadsafe(self._take)
        return message.ticket

    def receive(self, timeout: float) -> list[Response]:
        """The responses that have come, and at least one unless there is none in `timeout` seconds."""
        responses = []
        try:
            responses.append(self._responses.get(timeout=max(0.0, timeout)))
            while True:
                responses.append(self._responses.get_nowait())
        except queue.Empty:
            return responses

    def give_up(self, tickets: set[int]) -> None:
        """Wait no longer for these responses. What was not sent yet never will be."""
        self._loop.call_soon_threadsafe(self.members.forget, tickets)

    # In the stream's thread.

    def _take(self) -> None:
        self._notified = False  # first: whoever sends from now on notifies again
        while self._sent:
            self.members.put(*self._sent.popleft())

    def _review(self) -> None:
        """Expel those who are connected and would not be let in any more."""
        for member in self.members.connected():
            seen = member.connection
            if seen and (reason := self.entrance.admission.objection(member.id, seen.certificate)):
                self.members.expel(member.id, reason)
