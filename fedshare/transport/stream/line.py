"""A client's connection to its server: made, kept, and made again when it breaks off."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from fedshare._proto.stream_pb2 import Down, Hello, Leave, Up
from fedshare.errors import RunHalted, UserError, brief
from fedshare.identity.identity import Identity
from fedshare.transport.stream import handover, tls
from fedshare.transport.stream.diagnose import NotYet, reach
from fedshare.transport.stream.frames import Assembly, Buffer, FrameError, chunks, parse
from fedshare.transport.stream.service import METHOD
from fedshare.transport.stream.turns import Outbox, Turns

CONNECT_DEADLINE = 5.0  # seconds for one attempt
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds between attempts
NOTHING: Sequence[Buffer] = [b"\0"]  # the answer to a message when nobody waits for one
_TRANSIENT = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED),
    *(grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED),
)


class Line:
    """`hello`: the greeting of this client; `run_name`: the run that it asks for. `closing` is set to leave."""

    def __init__(
        self,
        address: str,
        hello: Hello,
        identity: tls.Renewed | None,
        turns: Turns,
        closing: threading.Event,
        patience: float,
        heartbeat: float,
        limit: int,
        say: Callable[[str], None],
        run_name: str,
    ) -> None:
        self._run_name = run_name
        self._address, self._hello, self._identity = address, hello, identity
        self._turns, self._closing = turns, closing
        self._patience, self._heartbeat, self._limit, self._say = patience, heartbeat, limit, say
        self._worked = False  # whether the last connection got as far as a welcome

    def hold(self) -> None:
        """Stay connected until the work is done, and put into the inbox how it ended. For a thread of its own."""
        until, pause = time.monotonic() + self._patience, SHORTEST_PAUSE
        try:
            while not self._closing.is_set():
                try:
                    if self._converse():
                        break
                    reason = "the server closed the connection"
                except grpc.RpcError as error:
                    if error.code() not in _TRANSIENT:
                        raise UserError(f"{self._address}: {brief(error.details() or error.code().name)}") from None
                    reason = handover.wait_for(error) or "the connection broke off"
                except NotYet as error:
                    reason = str(error).removeprefix(f"{self._address}: ")
                except FrameError as error:
                    raise UserError(f"{self._address}: the server sent {error}") from None
                if self._worked:
                    until, pause, self._worked = time.monotonic() + self._patience, SHORTEST_PAUSE, False
                left = until - time.monotonic()
                if left <= 0:
                    raise NotYet(f"{self._address}: {reason}; given up after {self._patience:g} s")
                if not self._closing.is_set():
                    self._say(f"waiting for {self._address}, up to {left:.0f} s more: {reason}")
                self._closing.wait(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
            self._turns.inbox.put(None)
        except BaseException as error:
            self._turns.inbox.put(error)

    def _converse(self) -> bool:
        """One connection, until it ends: True if it is not to be made again."""
        identity = self._identity.now() if self._identity else None
        with tls.channel(self._address, identity, self._heartbeat) as channel:
            if not is_ready(channel):
                self._diagnose(identity)
                raise NotYet(f"{self._address}: no gRPC connection in {CONNECT_DEADLINE:g} s")
            outbox: Outbox = queue.SimpleQueue()
            connect = channel.stream_stream(METHOD, _serialize, _as_they_are)
            call = connect(self._frames(outbox), metadata=handover.asking(self._run_name))
            try:
                return self._listen(call, outbox)
            finally:
                self._turns.disconnected()
                outbox.put(None)
                if not self._closing.is_set():
                    call.cancel()

    def _diagnose(self, identity: Identity | None) -> None:
        """Raise what stands in the way. A client that was let in once waits: the operator may mend it."""
        try:
            reach(self._address, identity)
        except UserError as error:
            if self._turns.epoch:
                raise NotYet(str(error)) from None
            raise

    def _frames(self, outbox: Outbox) -> Iterator[Up]:
        yield Up(hello=self._turns.greet(self._hello))
        while (reply := outbox.get()) is not None:
            for chunk in chunks(reply.number, reply.buffers):
                if reply.number <= self._turns.given_up:
                    yield from (Up(chunk=none) for none in chunks(reply.number, NOTHING))  # instead of the rest
                    break
                yield Up(chunk=chunk)
        yield Up(leave=Leave())

    def _listen(self, call: Any, outbox: Outbox) -> bool:
        """Take the server's frames until the connection ends: True if it is not to be made again."""
        assembly, turns = Assembly(self._limit), self._turns
        for frame in call:
            down = parse(Down, frame)
            kind = down.WhichOneof("kind")
            if kind == "chunk":
                if whole := assembly.add(down.chunk):
                    turns.arrived(*whole)
            elif kind == "welcome":
                # It stays with this run: while its server is away, another may be the only one.
                self._run_name = self._run_name or handover.arrived(call.initial_metadata())
                self._worked, first = True, not turns.epoch
                turns.welcomed(down.welcome, outbox)
                if not first:
                    self._say(f"connected to {self._address} again")
            elif kind == "given_up":
                turns.given_up = down.given_up.message
                self._say("the server waits no longer for what this client is at work on: it is too late")
            elif kind == "refusal":
                raise UserError(f"{self._address}: {brief(down.refusal.reason)}")
            elif kind == "farewell":
                reason = brief(down.farewell.reason)
                turns.inbox.put(RunHalted(f"the run halted: {reason}") if reason else None)
                return True
        return self._closing.is_set()


def is_ready(channel: grpc.Channel) -> bool:
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
