"""A client's messages and its last reply, between the thread that is connected and the one that works.

They outlast connections: a reply is sent again until the server has it, and a message is not worked on twice.
"""

import json
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedshare._proto.stream_pb2 import Hello, Welcome
from fedshare.transport.stream.frames import Buffer


@dataclass(frozen=True)
class Welcomed:
    """What the server said when it let us in."""

    config: dict[str, Any]
    clients: int


@dataclass(frozen=True)
class Arrived:
    """A message; `epoch` is the life of the server that sent it."""

    epoch: bytes
    number: int
    body: bytearray


@dataclass(frozen=True)
class Reply:
    number: int
    buffers: Sequence[Buffer]


Outbox = queue.SimpleQueue[Reply | None]  # of one connection; None: the client leaves


class Turns:
    def __init__(self) -> None:
        self.epoch = b""  # of the server's life that we were let in to; empty: never yet
        self.given_up = 0  # the number of the last message for whose answer the server does not wait
        self.inbox: queue.SimpleQueue[Arrived | Welcomed | BaseException | None] = queue.SimpleQueue()
        self._received = 0  # the number of the last message
        self._lock = threading.Lock()  # over the two below
        self._outbox: Outbox | None = None  # of the connection there is
        self._reply: Reply | None = None  # the last, until the server is known to have it

    # For the thread that is connected.

    def greet(self, hello: Hello) -> Hello:
        """Say in a greeting what we have of an earlier connection."""
        hello.epoch, hello.received = self.epoch, self._received
        return hello

    def welcomed(self, welcome: Welcome, outbox: Outbox) -> None:
        """We were let in. A server that was started anew counts from 1, and sends anew what it wants to know."""
        again = self.epoch == welcome.epoch
        self.epoch = welcome.epoch
        with self._lock:
            if again:
                if self._reply and self._reply.number > welcome.answered:
                    outbox.put(self._reply)
            else:
                self._reply, self._received, self.given_up = None, 0, 0
            self._outbox = outbox
        if not again:
            self.inbox.put(Welcomed(json.loads(welcome.config), welcome.clients))

    def arrived(self, number: int, body: bytearray) -> None:
        self._received = number
        self.inbox.put(Arrived(self.epoch, number, body))

    def disconnected(self) -> None:
        with self._lock:
            self._outbox = None

    # For the thread that works.

    def reply(self, to: Arrived, buffers: Sequence[Buffer]) -> None:
        """Send the answer to a message now, or on the next connection."""
        with self._lock:
            if to.epoch == self.epoch:  # or another life of the server asked
                self._reply = Reply(to.number, buffers)
                if self._outbox:
                    self._outbox.put(self._reply)

    def leave(self) -> None:
        with self._lock:
            if self._outbox:
                self._outbox.put(None)
