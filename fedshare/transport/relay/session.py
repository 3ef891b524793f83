"""One peer's stream at the relay: what it says is checked and handed on, and it is sent each commit."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import grpc

from fedshare._proto.relay_pb2 import Acknowledged, NotTaken, PeerUp, RelayDown, Saying
from fedshare.errors import brief
from fedshare.relay.entries import Entry, Kind
from fedshare.relay.keeper import Keeper
from fedshare.relay.sequencer import Status, Verdict
from fedshare.transport.relay.protocol import LATE, MESSAGE, NEVER, NOT_NOW, Whole
from fedshare.transport.relay.tail import Tail
from fedshare.transport.stream.frames import FrameError, parse

RATE, BURST = 500.0, 1000.0  # frames of a peer in a second, and at once
SLOWEST = 30.0  # seconds between two pieces of a message
WINDOW = 16  # messages of a peer that are not on disk yet
_WHY = {Status.LATE: LATE, Status.FULL: NOT_NOW, Status.REFUSED: NEVER, Status.TWO_THINGS: NEVER}


class Session:
    """`rounds` is how many commits the peer has; `last` returns how many the log has."""

    def __init__(
        self,
        peer: int,
        context: grpc.aio.ServicerContext,
        keeper: Keeper,
        tail: Tail,
        rounds: int,
        last: Callable[[], int],
    ) -> None:
        self.peer, self.rounds = peer, rounds
        self.bytes = 0
        self._context, self._keeper, self._tail, self._last = context, keeper, tail, last
        self._whole = Whole(keeper.settings.message)
        self._begun: Saying | None = None  # whose body is arriving
        self._tokens, self._counted = BURST, time.monotonic()
        self._acknowledged = self._told = 0
        self._not_taken = deque[NotTaken]()
        self._waits = ""
        self._refusal = ""
        self._open = 0  # messages that are not on disk yet
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self.post: Callable[[Callable[[], None]], None] = lambda act: act()  # brings a call to the loop's thread

    async def read(self) -> None:
        """Take what the peer says until it ends the stream. Raises FrameError."""
        while True:
            await self._allowed()
            slow = SLOWEST if self._begun is not None else None
            try:
                frame = await asyncio.wait_for(self._context.read(), slow)
            except TimeoutError:
                raise FrameError(f"no piece of a message for {SLOWEST:g} s") from None
            if frame is grpc.aio.EOF:
                return
            self.bytes += len(frame)
            self._take(parse(PeerUp, frame))

    async def write(self) -> None:
        """Send commits, acknowledgements and what is not taken, until the peer is refused."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._not_taken:
                await self._send(RelayDown(not_taken=self._not_taken.popleft()))
            if self._refusal:
                await self._send(RelayDown(refusal=self._refusal))
                return
            while self.rounds < self._last():
                framed = await self._tail.get(self.rounds)
                for frame in framed.frames:
                    await self._context.write(frame)
                self.rounds += 1
                self._told = max(self._told, framed.said.get(self.peer, 0))
            if self._acknowledged > self._told:
                self._told = self._acknowledged
                await self._send(RelayDown(acknowledged=Acknowledged(number=self._told)))
            if self._waits:
                waits, self._waits = self._waits, ""
                await self._send(RelayDown(waits=waits))

    def wake(self) -> None:
        """Look for new commits."""
        self._changed.set()

    def waits(self, text: str) -> None:
        self._waits = text
        self._changed.set()

    def refuse(self, reason: str) -> None:
        """Send why the peer is to go, and end."""
        self._refusal = reason
        self._changed.set()

    async def _send(self, down: RelayDown) -> None:
        await self._context.write(down.SerializeToString())

    async def _allowed(self) -> None:
        """Wait until the peer may send another frame."""
        while self._open >= WINDOW:
            self._room.clear()
            await self._room.wait()
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + RATE * (now - self._counted)) - 1
        self._counted = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / RATE)

    def _take(self, up: PeerUp) -> None:
        kind = up.WhichOneof("kind")
        if kind == "say":
            size = up.say.size or len(up.say.body)
            if size > self._keeper.settings.message:  # before anything of it is kept
                raise FrameError(f"a message of {size} bytes; at most {self._keeper.settings.message} are taken")
            if size == len(up.say.body):
                self._begun = None
                self._say(up.say, up.say.body)
            else:
                self._begun = up.say
                self._whole.begin(0, size, up.say.body)
        elif kind == "piece" and self._begun is not None:
            if (body := self._whole.add(0, up.piece.data)) is not None:
                begun, self._begun = self._begun, None
                self._say(begun, body)
        else:
            raise FrameError(f"{kind or 'an empty frame'} where it has no place")

    def _say(self, said: Saying, body: bytes) -> None:
        kind = Kind.MESSAGE if said.kind == MESSAGE else said.kind
        if kind > 255 or max(said.number, said.round) > 2**63 - 1 or len(said.signature) != 64:
            raise FrameError("a number, a round, a kind or a signature out of range")
        entry = Entry(kind, self.peer, said.number, said.round, body, said.signature)
        self._open += 1

        def done(verdict: Verdict) -> None:
            self.post(lambda: self._judged(entry.number, verdict))

        self._keeper.say(entry, done)

    def _judged(self, number: int, verdict: Verdict) -> None:
        self._open -= 1
        self._room.set()
        if verdict.status in (Status.TAKEN, Status.KNOWN):
            self._acknowledged = max(self._acknowledged, number)
        else:
            self._not_taken.append(NotTaken(number=number, why=_WHY[verdict.status], reason=brief(verdict.why)))
        if verdict.status is Status.TWO_THINGS:
            self._refusal = verdict.why
        self._changed.set()
