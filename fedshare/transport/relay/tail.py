"""The last commits of a log as frames, for all who follow it."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fedshare._proto.relay_pb2 import RelayDown
from fedshare.relay.commits import Commit, Head
from fedshare.relay.entries import RELAY
from fedshare.relay.store import Store
from fedshare.transport.relay.protocol import pieces

_KEPT = 64 << 20  # bytes of commits in memory


@dataclass(frozen=True)
class Framed:
    frames: Sequence[bytes]
    said: dict[int, int]  # by peer: the highest number that the commit holds

    @classmethod
    def of(cls, commit: Commit, head: Head) -> "Framed":
        whole = head.signature + commit.pack()
        frames = [RelayDown(commit=piece).SerializeToString() for piece in pieces(commit.round, whole)]
        said = dict[int, int]()
        for one in commit.entries:
            if one.peer != RELAY:
                said[one.peer] = max(said.get(one.peer, 0), one.number)
        return cls(frames, said)


class Tail:
    """Commits by round. Those that are not in memory are read from the log, in a thread of its own."""

    def __init__(self, reader: Store) -> None:
        self._reader = reader
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="log-reader")
        self._recent = dict[int, Framed]()
        self._bytes = 0

    def put(self, commit: Commit, head: Head) -> None:
        self._recent[commit.round] = framed = Framed.of(commit, head)
        self._bytes += sum(map(len, framed.frames))
        while self._bytes > _KEPT and len(self._recent) > 1:
            oldest = min(self._recent)
            self._bytes -= sum(map(len, self._recent.pop(oldest).frames))

    async def get(self, round: int) -> Framed:
        if found := self._recent.get(round):
            return found
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, round)

    async def head(self, round: int) -> Head | None:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._reader.head, round)

    async def read(self, asked):  # type: ignore[no-untyped-def]
        """Return what `asked` returns of the log."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, asked, self._reader)

    def _read(self, round: int) -> Framed:
        commit, head = self._reader.read(round), self._reader.head(round)
        assert commit is not None
        assert head is not None
        return Framed.of(commit, head)

    def close(self) -> None:
        self._pool.shutdown()
        self._reader.close()
