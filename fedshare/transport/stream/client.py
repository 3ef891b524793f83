"""A client's end: it stays connected, and answers each message once.

The connection has a thread of its own, so that it is kept, and made again, while the client trains.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from fedshare._proto.stream_pb2 import Down, Hello, Leave, Up, Welcome
from fedshare.errors import RunHalted, UserError, brief
from fedshare.identity.keys import Identity
from fedshare.transport.stream import handover, tls
from fedshare.transport.stream.diagnose import NotYet, reach
from fedshare.transport.stream.frames import (
    MESSAGE_LIMIT,
    PROTOCOL,
    Assembly,
    Buffer,
    FrameError,
    chunks,
    filled,
    parse,
)
from fedshare.transport.stream.server import METHOD

CONNECT_DEADLINE = 5.0  # seconds for one attempt
_NOTHING: Sequence[Buffer] = [b"\0"]  # the answer to a message when nobody waits for one
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds between attempts
_TRANSIENT = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED),
    *(grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED),
)


@dataclass(frozen=True)
class Welcomed:
    """What the server said when it let us in."""

    config: dict[str, Any]
    clients: int


@dataclass(frozen=True)
class _Arrived:
    epoch: bytes
    number: int
    body: bytearray


@dataclass(frozen=True)
class _Reply:
    number: int
    buffers: Sequence[Buffer]


class Last(Exception):
    """Raised by who answers a message: with this answer the client leaves, and `why`."""

    def __init__(self, answer: Sequence[Buffer], why: UserError) -> None:
        super().__init__(str(why))
        self.answer, self.why = answer, why


class StreamClient:
    """Client `id` of the server at `address`.

    `patience`: seconds to go on trying when the server cannot be reached. `say` is told, in a line, what is waited for.
    `run`: which run to take part in, where a gate has several or the server's has a name; without it the only one.
    """

    def __init__(
        self,
        address: str,
        id: int,
        identity: Identity | None,
        version: str,
        config_sha256: str = "",
        patience: float = 600.0,
        heartbeat: float = 10.0,
        limit: int = MESSAGE_LIMIT,
        say: Callable[[str], None] = print,
        run: str = "",
    ) -> None:
        self.run_name = run
        self.address, self.id = address, id
        self._renewed = tls.Renewed(identity, say) if identity else None
        self._patience, self._heartbeat, self._limit = patience, heartbeat, limit
        self._hello = Hello(protocol=PROTOCOL, client=id, version=version, config=config_sha256)
        self._say = say
        self._inbox: queue.SimpleQueue[_Arrived | Welcomed | BaseException | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over the two below
        self._outbox: queue.SimpleQueue[_Reply | None] | None = None  # of the connection there is
        self._reply: _Reply | None = None  # the last, until the server is known to have it
        self._closing = threading.Event()
        self._given_up = 0  # the last message for whose answer the server does not wait
        self._worked = False  # whether the last connection got as far as a welcome

    def run(self, prepare: Callable[[Welcomed], Callable[[bytearray], Sequence[Buffer]]]) -> None:
        """Answer messages until the server says that the work is done.

        `prepare` is called with what the server said, once for each life of a server, and gives the function that
        answers. Raises UserError when this client is refused or the server stays away, RunHalted when the work ended
        badly, and why the client left where it has given its `Last` answer.
        """
        thread = threading.Thread(target=self._stay_connected, name="stream", daemon=True)
        thread.start()
        answer: Callable[[bytearray], Sequence[Buffer]] | None = None
        try:
            while (item := self._inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Welcomed):
                    answer = prepare(item)
                    continue
                assert answer is not None  # a welcome comes before any message
                if item.epoch != self._hello.epoch:
                    continue  # nobody waits for it any more
                why, buffers = None, _NOTHING
                try:
                    if item.number > self._given_up:
                        buffers = answer(item.body)
                except Last as last:
                    buffers, why = last.answer, last.why
                reply = _Reply(item.number, filled(buffers))
                with self._lock:
                    if item.epoch == self._hello.epoch:  # or another life of the server asked
                        self._reply = reply
                        if self._outbox:
                            self._outbox.put(reply)
                if why:
                    raise why
        finally:
            self.close()
            thread.join(CONNECT_DEADLINE)

    def close(self) -> None:
        """Leave in order, and let `run` return: the server knows at once."""
        self._closing.set()
        with self._lock:
            if self._outbox:
                self._outbox.put(None)

    # In the connection's thread.

    def _stay_connected(self) -> None:
        until, pause = time.monotonic() + self._patience, SHORTEST_PAUSE
        try:
            while not self._closing.is_set():
                try:
                    if self._converse():
                        break
                    reason = "the server closed the connection"
                except grpc.RpcError as error:
                    if error.code() not in _TRANSIENT:
                        raise UserError(f"{self.address}: {brief(error.details() or error.code().name)}") from None
                    reason = handover.wait_for(error) or "the connection broke off"
                except NotYet as error:
                    reason = str(error).removeprefix(f"{self.address}: ")
                except FrameError as error:
                    raise UserError(f"{self.address}: the server sent {error}") from None
                if self._worked:
                    until, pause, self._worked = time.monotonic() + self._patience, SHORTEST_PAUSE, False
                left = until - time.monotonic()
                if left <= 0:
                    raise NotYet(f"{self.address}: {reason}; given up after {self._patience:g} s")
                if not self._closing.is_set():
                    self._say(f"waiting for {self.address}, up to {left:.0f} s more: {reason}")
                self._closing.wait(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
            self._inbox.put(None)
        except BaseException as error:
            self._inbox.put(error)

    def _converse(self) -> bool:
        """One connection, until it ends: True if it is not to be made again."""
        identity = self._renewed.now() if self._renewed else None
        with tls.channel(self.address, identity, self._heartbeat) as channel:
            if not _is_ready(channel):
                self._diagnose(identity)
                raise NotYet(f"{self.address}: no gRPC connection in {CONNECT_DEADLINE:g} s")
            outbox: queue.SimpleQueue[_Reply | None] = queue.SimpleQueue()
            connect = channel.stream_stream(METHOD, _serialize, _as_they_are)
            call = connect(self._frames(outbox), metadata=handover.asking(self.run_name))
            try:
                return self._listen(call, outbox)
            finally:
                with self._lock:
                    self._outbox = None
                outbox.put(None)
                if not self._closing.is_set():
                    call.cancel()

    def _diagnose(self, identity: Identity | None) -> None:
        """Raise what stands in the way. Who was let in once waits: the operator may put right what is wrong."""
        try:
            reach(self.address, identity)
        except UserError as error:
            if self._hello.epoch:
                raise NotYet(str(error)) from None
            raise

    def _frames(self, outbox: "queue.SimpleQueue[_Reply | None]") -> Iterator[Up]:
        yield Up(hello=self._hello)
        while (reply := outbox.get()) is not None:
            for chunk in chunks(reply.number, reply.buffers):
                if reply.number <= self._given_up:
                    yield from (Up(chunk=none) for none in chunks(reply.number, _NOTHING))  # instead of the rest
                    break
                yield Up(chunk=chunk)
        yield Up(leave=Leave())

    def _listen(self, call: Any, outbox: "queue.SimpleQueue[_Reply | None]") -> bool:
        assembly = Assembly(self._limit)
        for frame in call:
            down = parse(Down, frame)
            kind = down.WhichOneof("kind")
            if kind == "chunk":
                if whole := assembly.add(down.chunk):
                    self._hello.received = whole[0]
                    self._inbox.put(_Arrived(self._hello.epoch, *whole))
            elif kind == "welcome":
                # It stays with this run: while its server is away, another may be the only one.
                self.run_name = self.run_name or handover.arrived(call.initial_metadata())
                self._welcomed(down.welcome, outbox)
            elif kind == "given_up":
                self._given_up = down.given_up.message
                self._say("the server waits no longer for what this client is at work on: it is too late")
            elif kind == "refusal":
                raise UserError(f"{self.address}: {brief(down.refusal.reason)}")
            elif kind == "farewell":
                reason = brief(down.farewell.reason)
                self._inbox.put(RunHalted(f"the run halted: {reason}") if reason else None)
                return True
        return self._closing.is_set()

    def _welcomed(self, welcome: Welcome, outbox: "queue.SimpleQueue[_Reply | None]") -> None:
        self._worked = True
        first = not self._hello.epoch
        again = self._hello.epoch == welcome.epoch
        self._hello.epoch = welcome.epoch
        with self._lock:
            if again:
                if self._reply and self._reply.number > welcome.answered:
                    outbox.put(self._reply)
            else:  # a server that has been started anew counts from 1, and sends anew what it wants to know
                self._reply, self._hello.received, self._given_up = None, 0, 0
            self._outbox = outbox
        if not again:
            self._inbox.put(Welcomed(json.loads(welcome.config), welcome.clients))
        if not first:
            self._say(f"connected to {self.address} again")


def _is_ready(channel: grpc.Channel) -> bool:
    """Wait for the connection, but no longer than it takes to fail."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    channel.subscribe(states.put, try_to_connect=True)
    until = time.monotonic() + CONNECT_DEADLINE
    try:
        while (state := states.get(timeout=max(0.0, until - time.monotonic()))) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return False
    except queue.Empty:
        return False
    finally:
        channel.unsubscribe(states.put)
    return True


def _serialize(up: Up) -> bytes:
    return up.SerializeToString()


def _as_they_are(frame: bytes) -> bytes:
    return frame
