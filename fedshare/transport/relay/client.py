"""A peer's end of its stream to a relay, in a thread of its own: connected, kept, and connected again."""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc

from fedshare._proto.relay_pb2 import PeerHello, PeerUp, Piece, RelayDown, Saying
from fedshare.errors import RunHalted, UserError, brief
from fedshare.identity.identity import Identity
from fedshare.identity.signing import Signer
from fedshare.relay.commits import Commit
from fedshare.relay.entries import Entry, Kind
from fedshare.relay.follower import Follower
from fedshare.relay.position import Position
from fedshare.relay.spool import Spool
from fedshare.transport.relay.protocol import CONNECT, LATE, MESSAGE, NOT_NOW, PROTOCOL, Whole
from fedshare.transport.stream import tls
from fedshare.transport.stream.diagnose import NotYet, reach
from fedshare.transport.stream.frames import CHUNK, FrameError, parse
from fedshare.transport.stream.line import CONNECT_DEADLINE, LONGEST_PAUSE, SHORTEST_PAUSE, is_ready

LARGEST = 8 << 30  # bytes of a commit
AHEAD = 64 << 20  # bytes of commits that wait to be taken
_TRANSIENT = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED),
    *(grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED),
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_PERMANENT_SIZE = "larger than max"  # gRPC says RESOURCE_EXHAUSTED of a frame that is too large, too


@dataclass(frozen=True)
class Taken:
    """A commit that was checked, and the position after it."""

    commit: Commit
    position: Position
    bytes: int


class RelayClient:
    """Peer `peer` of `run`, at the relay at `address`, from `start` to `close`.

    Commits after the follower's position come from `commit`, in order. What is said is on disk before it is sent, and
    is sent again until the log holds it. `patience`: seconds without a relay after which it gives up.
    """

    def __init__(
        self,
        address: str,
        peer: int,
        signer: Signer,
        identity: Identity | None,
        follower: Follower,
        spool: Spool,
        version: str,
        patience: float = 600.0,
        heartbeat: float = 10.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.address, self.peer = address, peer
        self._signer, self._follower, self._spool, self._version = signer, follower, spool, version
        self._patience, self._heartbeat, self._say = patience, heartbeat, say
        self._identity = tls.Renewed(identity, say) if identity else None
        self._thread = threading.Thread(target=self._hold, name="relay-client", daemon=True)
        self._changed = threading.Condition()
        self._taken: list[Taken] = []
        self._waiting_bytes = 0
        self._error: BaseException | None = None
        self._closing = False
        self._outbox: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._call: Any = None
        self._welcomed = False  # on the last connection
        self._ever = False
        self.rounds = follower.head.round + 1  # commits that the log is known to have
        self.waits = ""  # for what the open round waits, as the relay says
        self.acknowledged = 0  # the highest number that is on the relay's disk
        self.largest = 0  # bytes that a message may have

    @property
    def relay(self) -> bytes:
        """The relay's public key."""
        return self._follower.key

    def start(self) -> None:
        """Connect, and return when the relay has let this peer in. Raises UserError, or RunHalted."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ever or self._error, self._patience + 2 * CONNECT_DEADLINE)
            self._check()
            if not self._ever:
                raise RunHalted(f"{self.address}: the relay has not let this peer in for {self._patience:g} s")

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._outbox.put(None)
        if self._thread.ident:
            self._thread.join(1.0)
            if (call := self._call) is not None:
                call.cancel()
            self._thread.join(CONNECT_DEADLINE)

    def commit(self, timeout: float) -> Taken:
        """Return the next commit. Raises RunHalted with whom it waits for, or why there is none."""
        taken = self.peek(timeout)
        with self._changed:
            self._taken.pop(0)
            self._waiting_bytes -= taken.bytes
            self._changed.notify_all()
            return taken

    def peek(self, timeout: float) -> Taken:
        """Return the next commit, and leave it to `commit`. Raises as that."""
        with self._changed:
            there = self._changed.wait_for(lambda: self._taken or self._error, timeout)
            if not self._taken:
                self._check()
            if not there:
                raise RunHalted(
                    f"{self.address}: no commit for {timeout:g} s: {self.waits or 'the relay says nothing'}"
                )
            return self._taken[0]

    def say(self, kind: Kind, round: int, body: bytes, head: bytes) -> None:
        """Say something, for a round; `head` is that of the commit before it. It is on disk when this returns."""
        if self.largest and len(body) > self.largest:
            raise UserError(f"a message of {len(body)} bytes; the relay takes {self.largest}: its --message-mb")
        with self._changed:
            self._check()
            entry = self._spool.say(kind, round, body, head)
            self._outbox.put(entry)

    def flushed(self, timeout: float) -> bool:
        """Wait until the relay has all that was said on its disk; return whether it has."""
        with self._changed:
            return (
                self._changed.wait_for(
                    lambda: self._error or not self._spool.waiting or self.acknowledged >= self._spool.last, timeout
                )
                and not self._error
            )

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # In the thread.

    def _hold(self) -> None:
        draw = Random()
        until, pause = time.monotonic() + self._patience, SHORTEST_PAUSE
        try:
            while not self._closing:
                try:
                    self._converse()
                    reason = "the relay closed the connection"
                except grpc.RpcError as error:
                    details = brief(error.details() or error.code().name)
                    if error.code() not in _TRANSIENT or _PERMANENT_SIZE in details:
                        raise UserError(f"{self.address}: {details}") from None
                    full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    reason = f"the relay takes nothing: {details}" if full else "the connection broke off"
                except NotYet as error:
                    reason = str(error).removeprefix(f"{self.address}: ")
                except FrameError as error:
                    raise UserError(f"{self.address}: the relay sent {error}") from None
                if self._welcomed:
                    until, pause, self._welcomed = time.monotonic() + self._patience, SHORTEST_PAUSE, False
                left = until - time.monotonic()
                if self._closing:
                    break
                if left <= 0:
                    raise NotYet(f"{self.address}: {reason}; given up after {self._patience:g} s")
                self._say(f"waiting for the relay at {self.address}, up to {left:.0f} s more: {reason}")
                with self._changed:
                    # Peers that were cut off together do not come back together.
                    self._changed.wait_for(lambda: self._closing, min(pause * draw.uniform(0.5, 1.5), left))
                pause = min(2 * pause, LONGEST_PAUSE)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _converse(self) -> None:
        """Hold one connection, until it ends."""
        identity = self._identity.now() if self._identity else None
        with tls.channel(self.address, identity, self._heartbeat) as channel:
            if not is_ready(channel):
                self._diagnose(identity)
                raise NotYet(f"{self.address}: no gRPC connection in {CONNECT_DEADLINE:g} s")
            with self._changed:
                outbox: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
                self._outbox = outbox
            nonce = secrets.token_bytes(32)
            connect = channel.stream_stream(CONNECT, PeerUp.SerializeToString, bytes)
            self._call = call = connect(self._frames(outbox, nonce))
            try:
                self._listen(call, nonce, outbox)
            finally:
                outbox.put(None)
                call.cancel()

    def _diagnose(self, identity: Identity | None) -> None:
        """Raise what stands in the way. A peer that was let in once waits: the operator may mend it."""
        try:
            reach(self.address, identity)
        except UserError as error:
            if self._ever:
                raise NotYet(str(error)) from None
            raise

    def _frames(self, outbox: "queue.SimpleQueue[Entry | None]", nonce: bytes) -> Iterator[PeerUp]:
        follower = self._follower
        yield PeerUp(
            hello=PeerHello(
                protocol=PROTOCOL,
                peer=self.peer,
                version=self._version,
                run=follower.run,
                key=self._signer.public,
                known=follower.head.round + 1,
                seen=follower.known,
                nonce=nonce,
            )
        )
        while (entry := outbox.get()) is not None:
            kind = MESSAGE if entry.kind == Kind.MESSAGE else entry.kind
            size, first = len(entry.body), entry.body[:CHUNK]
            said = Saying(number=entry.number, round=entry.round, kind=kind, signature=entry.signature, body=first)
            if size > CHUNK:
                said.size = size
            yield PeerUp(say=said)
            for start in range(CHUNK, size, CHUNK):
                yield PeerUp(piece=Piece(data=entry.body[start : start + CHUNK]))

    def _listen(self, call: Any, nonce: bytes, outbox: "queue.SimpleQueue[Entry | None]") -> None:
        """Take the relay's frames until the connection ends."""
        whole = Whole(LARGEST)
        for frame in call:
            down = parse(RelayDown, frame)
            kind = down.WhichOneof("kind")
            if kind == "commit":
                piece = down.commit
                add = whole.begin(piece.of, piece.size, piece.data) if piece.size else whole.add(piece.of, piece.data)
                if add is not None:
                    self._commit(piece.of, add)
            elif kind == "acknowledged":
                with self._changed:
                    self.acknowledged = max(self.acknowledged, down.acknowledged.number)
                    self._changed.notify_all()
            elif kind == "not_taken":
                self._not_taken(down.not_taken, outbox)
            elif kind == "welcome":
                self._welcome(down.welcome, nonce, outbox)
            elif kind == "waits":
                self.waits = brief(down.waits)
                self._say(self.waits)
            elif kind == "refusal":
                raise UserError(f"{self.address}: {brief(down.refusal)}")
            if self._closing:
                return

    def _welcome(self, said: Any, nonce: bytes, outbox: "queue.SimpleQueue[Entry | None]") -> None:
        known = said.known, said.known_signed
        self._follower.welcomed(said.key, said.rounds, said.head, said.status, *known, nonce)
        with self._changed:
            self._spool.skip(said.said)
            again = [entry for number, entry in self._spool.waiting.items() if number > said.said]
            for entry in again:
                outbox.put(entry)
            self.rounds, self.largest = max(self.rounds, said.rounds), said.message
            self.acknowledged = max(self.acknowledged, said.said)
            if self._ever:
                self._say(f"connected to the relay at {self.address} again")
            self._welcomed = self._ever = True
            self._changed.notify_all()

    def _commit(self, round: int, data: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting_bytes < AHEAD or not self._taken)
        commit = self._follower.take(round, data)
        member = self._follower.members.all.get(self.peer)
        with self._changed:
            if member:
                self._spool.settled(member.said)
                if member.removed:
                    self._error = RunHalted(f"{self.address}: peer {self.peer} was removed: {brief(member.removed)}")
            self._taken.append(Taken(commit, self._follower.position(), len(data)))
            self._waiting_bytes += len(data)
            self.rounds = max(self.rounds, round + 1)
            self._changed.notify_all()

    def _not_taken(self, said: Any, outbox: "queue.SimpleQueue[Entry | None]") -> None:
        with self._changed:
            entry = self._spool.waiting.get(said.number)
            if said.why == NOT_NOW and entry is not None:
                self._say(f"the relay takes nothing for now: {brief(said.reason)}")
                timer = threading.Timer(1.0, outbox.put, (entry,))
                timer.daemon = True
                timer.start()
                return
            self._spool.waiting.pop(said.number, None)
            self._changed.notify_all()
        if said.why != LATE:
            raise UserError(f"{self.address}: the relay does not take what this peer says: {brief(said.reason)}")
        self._say(f"too late: {brief(said.reason)}")
