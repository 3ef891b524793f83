"""One connection of one client: the frames that pass on it, both ways, for as long as it lasts."""

import asyncio
from collections.abc import Callable

import grpc

from fedshare._proto.stream_pb2 import Down, GivenUp, Up
from fedshare.transport.stream import tls
from fedshare.transport.stream.frames import Assembly, FrameError, chunks, parse
from fedshare.transport.stream.mailbox import Mailbox, Message


class Connection:
    def __init__(self, context: grpc.aio.ServicerContext, caller: dict[str, str]) -> None:
        self.certificate = tls.shown(context)  # in PEM; None without TLS
        self.caller = caller  # for the audit log: see `tls.caller`
        self.cut = asyncio.Event()  # set to end the connection without another frame
        self._context = context
        self._wake = asyncio.Event()
        self._last: Down | None = None  # what to say before hanging up

    def wake(self) -> None:
        """There is something new to send."""
        self._wake.set()

    def hang_up(self, last: Down) -> None:
        """Send `last`, and nothing after it."""
        self._last = last
        self._wake.set()

    async def send(self, down: Down) -> None:
        await self._context.write(down.SerializeToString())

    async def converse(self, box: Mailbox, limit: int, answered: Callable[[Message, bytearray], None]) -> bool:
        """Send what `box` holds and take the answers until the connection ends: True where the client has left.

        `limit`: the bytes that an answer may have, where its message sets no limit. Raises FrameError.
        """
        reader = asyncio.ensure_future(self._read(box, limit, answered))
        writer = asyncio.ensure_future(self._write(box))
        cut = asyncio.ensure_future(self.cut.wait())
        try:
            await asyncio.wait({reader, writer, cut}, return_when=asyncio.FIRST_COMPLETED)
            return reader.done() and reader.result()
        finally:
            for task in (reader, writer, cut):
                task.cancel()

    async def _write(self, box: Mailbox) -> None:
        """Send the client its messages, until there is a last thing to say."""
        while self._last is None:
            message = box.current
            if message and message.sent and message.given_up and not message.told:
                message.told = True
                await self.send(Down(given_up=GivenUp(message=message.number)))
            elif message is None or message.sent:
                self._wake.clear()
                await self._wake.wait()
            else:
                for chunk in chunks(message.number, message.buffers):
                    await self.send(Down(chunk=chunk))
                    if box.current is not message or self._last:  # given up, or no longer ours to send
                        break
                else:
                    message.sent = True
        await self.send(self._last)

    async def _read(self, box: Mailbox, limit: int, answered: Callable[[Message, bytearray], None]) -> bool:
        """Take the client's answers until it leaves, or the connection ends: True where it has left."""
        assembly = Assembly(limit)
        while (frame := await self._context.read()) is not grpc.aio.EOF:
            up = parse(Up, frame)
            kind = up.WhichOneof("kind")
            if kind == "leave":
                return True
            if kind != "chunk":
                raise FrameError("a second greeting" if kind else "a frame that says nothing")
            if up.chunk.message > box.counted:
                raise FrameError(f"an answer to message {up.chunk.message}, which was never sent")
            if box.current is None or box.current.number != up.chunk.message:
                continue  # repeated after a cut, or too late
            if (whole := assembly.add(up.chunk, box.current.limit)) is None:
                continue
            if message := box.answered():
                answered(message, whole[1])
            if box.current:
                self.wake()
        return False
