"""What a peer has said in its last two rounds, on disk before it is sent: after a crash it says the same again.

One file a round, ``round-000000000012.spool``: a head with the round, the round that was asked for and the links that
were open, and then records, each with a checksum. A record that a crash cut off was never sent, and is removed.
"""

import fcntl
import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedshare.errors import UserError
from fedshare.machine.files import append, private_folder, sweep, write_atomically
from fedshare.transport.mesh.link import number_of

_MAGIC = b"fedshare mesh 1\n"
_HEAD = struct.Struct("<16s32sIQQI")  # magic, run, peer, round, asked for, links
_LINK = struct.Struct("<IQ")  # peer, and the round since which it is open
_RECORD = struct.Struct("<BQI")  # kind, bytes, CRC-32
_SAID, _CLOSED = 1, 2
_NAME = re.compile(r"round-([0-9]{12})\.spool")


@dataclass
class Round:
    """A round as it is on disk."""

    number: int
    asked: int  # the round that was asked for when this one was entered
    links: dict[int, int]  # by peer: the round since which the link was open
    steps: dict[int, dict[int, bytes]] = field(default_factory=dict)  # by step, the messages by peer


class Spool:
    """The folder of one peer in one run, locked for this process. Raises UserError if it is another's."""

    def __init__(self, folder: Path, run: bytes, me: int) -> None:
        private_folder(folder)
        self._folder, self._run, self._me = folder, run, me
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"{folder}: another process has these messages: does peer {me} run already?") from None
        sweep(folder)
        try:
            self.rounds = sorted((self._load(path) for path in self._files()), key=lambda round: round.number)
        except BaseException:
            self._lock.close()
            raise

    @property
    def last(self) -> Round | None:
        """The round that was entered last."""
        return self.rounds[-1] if self.rounds else None

    def said(self) -> dict[int, dict[int, bytes]]:
        """All messages that are kept, by number and peer."""
        return {number_of(one.number, step): said for one in self.rounds for step, said in sorted(one.steps.items())}

    def begin(self, round: int, asked: int, links: Mapping[int, int]) -> None:
        """Enter a round, and forget what was said in those before the one before it."""
        if self.last is None or self.last.number != round:
            head = _HEAD.pack(_MAGIC, self._run, self._me, round, asked, len(links))
            head += b"".join(_LINK.pack(peer, since) for peer, since in sorted(links.items()))
            write_atomically(self._path(round), head + struct.pack("<I", zlib.crc32(head)), mode=0o600)
            self.rounds.append(Round(round, asked, dict(links)))
        for old in self.rounds[:-2]:
            self._path(old.number).unlink(missing_ok=True)
        del self.rounds[:-2]

    def say(self, step: int, messages: Mapping[int, bytes]) -> None:
        """Keep the messages of a step of the round that was entered last, by peer; equal ones once."""
        assert self.last
        places = dict[bytes, int]()
        for data in messages.values():
            places.setdefault(data, len(places))
        pairs = [struct.pack("<II", peer, places[data]) for peer, data in messages.items()]
        sizes = [struct.pack("<Q", len(data)) for data in places]
        body = b"".join([struct.pack("<III", step, len(pairs), len(sizes)), *pairs, *sizes, *places])
        self._append(_SAID, body)
        self.last.steps[step] = dict(messages)

    def close(self, peer: int) -> None:
        """Note that a link is not open any more."""
        if self.last and peer in self.last.links:
            self._append(_CLOSED, struct.pack("<I", peer))
            del self.last.links[peer]

    def clear(self) -> None:
        """Forget everything: this peer begins anew."""
        for path in self._files():
            path.unlink(missing_ok=True)
        self.rounds = []

    def release(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def _append(self, kind: int, body: bytes) -> None:
        assert self.last
        append(self._path(self.last.number), _RECORD.pack(kind, len(body), zlib.crc32(body)) + body)

    def _files(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round:012}.spool"

    def _load(self, path: Path) -> Round:
        data = path.read_bytes()
        try:
            magic, run, me, round, asked, count = _HEAD.unpack_from(data)
            at = _HEAD.size + count * _LINK.size
            (checksum,) = struct.unpack_from("<I", data, at)
        except struct.error:
            raise UserError(f"{path}: is damaged; without it this peer joins as a new one: move it away") from None
        if magic != _MAGIC or checksum != zlib.crc32(data[:at]) or self._path(round) != path:
            raise UserError(f"{path}: is damaged; without it this peer joins as a new one: move it away")
        if run != self._run or me != self._me:
            whose = "of another run" if run != self._run else f"of peer {me}"
            raise UserError(f"{path}: is {whose}; take another folder, or move it away")
        found = Round(round, asked, dict(_LINK.iter_unpack(data[_HEAD.size : at])))
        at += 4
        try:
            while (end := self._take(found, data, at)) > at:
                at = end
        except ValueError as error:
            raise UserError(f"{path}: is damaged ({error}); without it this peer joins as a new one") from None
        if at < len(data):
            os.truncate(path, at)
        return found

    @staticmethod
    def _take(round: Round, data: bytes, at: int) -> int:
        """Read the record at `at` into `round` and return where the next one begins; `at` if it is not whole."""
        if at + _RECORD.size > len(data):
            return at
        kind, size, checksum = _RECORD.unpack_from(data, at)
        begin, end = at + _RECORD.size, at + _RECORD.size + size
        body = memoryview(data)[begin:end]
        if end < len(data) and zlib.crc32(body) != checksum:  # no crash does that
            raise ValueError("a record that is not the last one was changed")
        if end > len(data) or zlib.crc32(body) != checksum:
            return at
        if kind == _CLOSED:
            round.links.pop(struct.unpack("<I", body)[0], None)
            return end
        step, pairs, sizes = struct.unpack_from("<III", body)
        start = 12 + 8 * pairs
        lengths = [one for (one,) in struct.iter_unpack("<Q", body[start : start + 8 * sizes])]
        where, said = start + 8 * sizes, list[bytes]()
        for length in lengths:
            said.append(bytes(body[where : where + length]))
            where += length
        round.steps[step] = {peer: said[place] for peer, place in struct.iter_unpack("<II", body[12:start])}
        return end
