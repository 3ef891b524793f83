"""A TCP proxy for tests, between clients and a server on this machine: it delays, dribbles, holds back, cuts and spoils
bytes."""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

UP, DOWN = "up", "down"  # to the server, to the client
_PIECE = 1 << 14  # bytes
PAUSE = 0.2  # seconds between the bytes of who dribbles


class Proxy:
    """Listens at `address`, and passes everything on to `port`, from `with` to the end of the block."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self.port = port
        self.passed = {UP: 0, DOWN: 0}  # bytes
        self.delay = 0.0  # seconds for each piece, in either direction
        self.rate = 0.0  # bytes a second and connection; 0: as fast as they come
        self.cuts = 0
        self.connections = 0
        self._random = random.Random(seed)
        self._cut_at: dict[str, int] = {}  # how much may still pass
        self._dribble_at: int | None = None  # how much may still pass to the server, before it is byte by byte
        self._spoil: set[str] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._open = asyncio.Event()
        self._open.set()
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(5)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection there is."""
        self._loop.call_soon_threadsafe(self._cut)

    def cut_after(self, way: str, passed: int) -> None:
        """Reset every connection when `passed` more bytes have gone `way`."""
        self._cut_at[way] = passed

    def dribble_after(self, passed: int) -> None:
        """When `passed` more bytes have gone to the server, let each one after them take `PAUSE` seconds."""
        self._dribble_at = self.passed[UP] + passed

    def flow(self) -> None:
        """No dribbling any more."""
        self._dribble_at = None

    def spoil(self, way: str) -> None:
        """Turn round one bit of the next piece that goes `way`."""
        self._spoil.add(way)

    def hold(self) -> None:
        """Be a black hole: take connections and bytes, and let nothing through until `release`."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)

    # In the proxy's own thread, all of it.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            self._reset(writer)
            return
        self._writers.add(far_writer)
        ways = self._pass(reader, far_writer, UP), self._pass(far_reader, writer, DOWN)
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, far_writer):
            self._writers.discard(end)
            end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while piece := await reader.read(_PIECE):
            await self._open.wait()
            await asyncio.sleep(self.delay + (len(piece) / self.rate if self.rate else 0.0))
            if way in self._spoil:
                self._spoil.discard(way)
                spoilt = bytearray(piece)
                spoilt[self._random.randrange(len(piece))] ^= 1 << self._random.randrange(8)
                piece = bytes(spoilt)
            left = self._cut_at.get(way)
            if left is not None and left <= len(piece):
                del self._cut_at[way]
                writer.write(piece[:left])
                self._cut()
                return
            if left is not None:
                self._cut_at[way] = left - len(piece)
            for part in self._parts(piece, way):
                self.passed[way] += len(part)
                writer.write(part)
                await writer.drain()
                if self._dribbles(way):
                    await asyncio.sleep(PAUSE)
        if writer.can_write_eof():
            writer.write_eof()

    def _dribbles(self, way: str) -> bool:
        return way == UP and self._dribble_at is not None and self.passed[UP] >= self._dribble_at

    def _parts(self, piece: bytes, way: str) -> Iterator[bytes]:
        """All of it, or byte by byte from where it dribbles."""
        while piece:
            left = len(piece)
            if way == UP and self._dribble_at is not None:
                left = max(1, self._dribble_at - self.passed[UP])
            part, piece = piece[:left], piece[left:]
            yield part

    def _cut(self) -> None:
        self.cuts += 1
        while self._writers:
            self._reset(self._writers.pop())

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        if connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _stop(self) -> None:
        self._open.set()
        self._server.close()
        while self._writers:
            self._reset(self._writers.pop())
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=3)
