"""One connection with a neighbour: the frames that pass on it, both ways, for as long as it lasts."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from fedshare._proto.mesh_pb2 import MeshFrame
from fedshare._proto.stream_pb2 import Chunk
from fedshare.errors import UserError, brief
from fedshare.machine.failpoints import failpoint
from fedshare.transport.mesh.link import STEPS, Link
from fedshare.transport.mesh.settings import AHEAD
from fedshare.transport.stream.frames import Assembly, FrameError, chunks, parse

WRAPPING = 14  # bytes around a frame: 5 of gRPC, 9 of HTTP/2; those of TLS and TCP come on top


class Stream(Protocol):
    """Either end of a gRPC stream of bytes."""

    async def read(self) -> Any: ...

    async def write(self, frame: bytes, /) -> Any: ...


class Traffic:
    """Bytes of a link, in frames, over all its connections."""

    def __init__(self) -> None:
        self.sent, self.received = 0, 0


class Talk:
    """`limit`: the bytes of a message; `last`: the last round that may be named.

    `hear` takes frames that are no parts of messages, `arrived` is called when a message is whole.
    """

    def __init__(
        self,
        link: Link,
        lacks: int,
        limit: int,
        last: int,
        traffic: Traffic,
        hear: Callable[[MeshFrame], None],
        arrived: Callable[[], None],
    ) -> None:
        self.cut = asyncio.Event()  # set to end the connection
        self.heard = 0.0  # when the last frame came, by the loop's clock
        self._link, self._limit, self._last, self._traffic = link, limit, last, traffic
        self._hear, self._arrived = hear, arrived
        self._unsent = lacks  # messages from this number on are to be sent
        self._wake, self._taken = asyncio.Event(), asyncio.Event()

    def wake(self) -> None:
        """There may be something to send, and room for messages."""
        self._wake.set()
        self._taken.set()

    def idle(self) -> bool:
        """Whether all that is to be sent is sent."""
        return not self._link.outbox and self._coming() is None

    async def converse(self, stream: Stream) -> None:
        """Send and take frames until the connection ends. Raises FrameError, and UserError on a refusal."""
        self.heard = asyncio.get_running_loop().time()
        tasks = [asyncio.ensure_future(one) for one in (self._read(stream), self._write(stream), self.cut.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # To the neighbour.

    def _coming(self) -> int | None:
        return next((number for number in self._link.sent if number >= self._unsent), None)

    async def _write(self, stream: Stream) -> None:
        link = self._link
        while True:
            self._wake.clear()
            if link.outbox:
                await self._put(stream, link.outbox.popleft())
            elif (number := self._coming()) is not None:
                await self._send(stream, number, link.sent[number])
            else:
                await self._wake.wait()

    async def _send(self, stream: Stream, number: int, data: bytes) -> None:
        if not data:
            await self._put(stream, MeshFrame(nothing=number))
        for chunk in chunks(number, [data]) if data else ():
            await self._put(stream, MeshFrame(chunk=chunk))
            while self._link.outbox:
                await self._put(stream, self._link.outbox.popleft())
            if self._link.sent.get(number) is not data:  # the link was closed
                break
        self._unsent = number + 1
        failpoint("mesh.after-send")

    async def _put(self, stream: Stream, frame: MeshFrame) -> None:
        data = frame.SerializeToString()
        self._traffic.sent += len(data) + WRAPPING
        await stream.write(data)

    # From the neighbour.

    async def _read(self, stream: Stream) -> None:
        assembly = Assembly(self._limit)
        while await self._room() and (data := await stream.read()) is not grpc.aio.EOF:
            self.heard = asyncio.get_running_loop().time()
            self._traffic.received += len(data) + WRAPPING
            frame = parse(MeshFrame, data)
            kind = frame.WhichOneof("kind")
            if (named := latest_in(frame)) > self._last:
                raise FrameError(f"round {named}, and the run ends before")
            if kind == "chunk":
                self._take(assembly, frame.chunk)
            elif kind == "nothing":
                if self._wanted(frame.nothing):
                    self._keep(frame.nothing, b"")
            elif kind == "refusal":
                raise UserError(brief(frame.refusal.reason))
            elif kind is None or kind == "hello":
                raise FrameError("a second greeting" if kind else "a frame that says nothing")
            else:
                self._hear(frame)

    async def _room(self) -> bool:
        """Wait until this peer has taken some of the messages that came early; an answer that it awaits goes before."""
        while len(self._link.arrived) >= AHEAD and not self._link.offered:
            self._taken.clear()
            await self._taken.wait()
        return True

    def _take(self, assembly: Assembly, chunk: Chunk) -> None:
        if self._wanted(chunk.message) and (whole := assembly.add(chunk)):
            self._keep(chunk.message, bytes(whole[1]))

    def _wanted(self, number: int) -> bool:
        """Whether a message is to be taken: it may be repeated after a cut, or of a link that is closed here."""
        link = self._link
        if len(link.arrived) >= 2 * AHEAD:
            raise FrameError(f"{2 * AHEAD} messages before this peer had taken any of them")
        return number >= link.lacks and link.open_in(number // STEPS)

    def _keep(self, number: int, data: bytes) -> None:
        self._link.arrived[number] = data
        self._link.lacks = number + 1
        self._arrived()


def latest_in(frame: MeshFrame) -> int:
    """The latest round that a frame names."""
    kind = frame.WhichOneof("kind")
    if kind == "chunk":
        return frame.chunk.message // STEPS
    if kind == "nothing":
        return frame.nothing // STEPS
    if kind == "hello":
        return max(frame.hello.entered, frame.hello.until, frame.hello.lacks // STEPS, *frame.hello.opened, 0)
    if kind == "propose":
        return max(frame.propose.round, frame.propose.entered)
    if kind == "too_late":
        return max(frame.too_late.round, frame.too_late.entered)
    if kind == "closed":
        return max(frame.closed.opened, frame.closed.until)
    return frame.leave.round if kind == "leave" else frame.accept.round if kind == "accept" else 0
