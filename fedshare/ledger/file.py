"""A ledger in one file, to which each round is appended, and in which damage anywhere is detected and located.

It begins with a title line, the manifest, and the manifest's SHA-256. A commit is stored as its length times a prime,
in 5 bytes, the commit, and the first 8 bytes of its head. One wrong byte never turns one valid length into another,
because the result is not a multiple of the prime. So a file truncated by a crash differs from a damaged one: from the
first all complete commits are read, from the second nothing.

Beside the codes, a commit of one peer takes at most 22 bytes, however many codes it has, and one of 8 peers with 8
codes each at most 35, which is 0.55 for each code. (Up to round 2**21, peer 127, and a step of 2**14.)
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedshare.errors import UserError
from fedshare.ledger.commit import Commit, Manifest, head_of, number, numbers
from fedshare.machine.files import append, write_atomically, writing

_TITLE = b"fedshare ledger\n"
_PRIME = 65521  # 1 in so many random lengths would pass
_LENGTH = 5  # bytes of a length times the prime
LONGEST = (256**_LENGTH - 1) // _PRIME  # bytes of a commit: 16 million
_HEAD = 8  # stored bytes of a commit's head: 1 damaged commit in 2**64 would pass


@dataclass(frozen=True)
class Place:
    """A commit and its position in a file."""

    commit: Commit
    head: str
    end: int  # start of the next one


@dataclass(frozen=True)
class Contents:
    manifest: Manifest
    start: int  # of the first commit
    places: list[Place]
    end: int  # of the complete commits
    cut: int  # bytes after that, of a truncated commit

    @property
    def commits(self) -> list[Commit]:
        return [place.commit for place in self.places]

    @property
    def head(self) -> str:
        return self.places[-1].head if self.places else self.manifest.head


class LedgerFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        return self.path.is_file()

    def create(self, manifest: Manifest) -> None:
        """Write a ledger without commits, replacing an existing one."""
        packed = manifest.pack()
        write_atomically(self.path, _TITLE + bytes(number(len(packed))) + packed + bytes.fromhex(manifest.head))

    def append(self, commit: Commit, head: str) -> None:
        """Append a commit; it is on disk when this returns. `head` is the head after it."""
        body = commit.pack()
        if len(body) > LONGEST:
            raise UserError(f"{self.path}: round {commit.round} has {len(body)} bytes; a commit may have {LONGEST}")
        append(self.path, (len(body) * _PRIME).to_bytes(_LENGTH, "little") + body + bytes.fromhex(head)[:_HEAD])

    def rewind(self, round: int) -> str | None:
        """Remove the commits after `round` and any truncated one; return a line about the latter, if any."""
        contents = self.read()
        kept = [place.end for place in contents.places if place.commit.round <= round]
        end = kept[-1] if kept else contents.start
        with writing(self.path), self.path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
        return self.shortened(contents)

    def shortened(self, contents: Contents) -> str | None:
        """Return a line about a truncated commit, if any."""
        if not contents.cut:
            return None
        last = contents.places[-1].commit.round if contents.places else 0
        return f"{self.path}: its last {contents.cut} bytes are of a commit cut short; it is whole up to round {last}"

    def read(self) -> Contents:
        """Return the whole contents. Raises UserError if damaged, naming the position."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error
        return self.parsed(data)

    def parsed(self, data: bytes) -> Contents:
        """Like `read`, for a file that holds `data`."""
        manifest, start = self._manifest(data)
        places, head, end, round = list[Place](), manifest.head, start, 0
        for body, check, after in self._bodies(data, start):
            last = f"after round {round}" if round else "at its first commit"
            try:
                commit = Commit.unpack(body)
            except ValueError as error:
                raise UserError(f"{self.path}: damaged {last}, at byte {end}: {error}") from error
            head = head_of(head, body)
            if bytes.fromhex(head)[:_HEAD] != check:
                raise UserError(f"{self.path}: damaged {last}, at byte {end}: the commit's head is another")
            if commit.round <= round:
                raise UserError(f"{self.path}: damaged {last}, at byte {end}: round {commit.round} follows it")
            places.append(Place(commit, head, after))
            end, round = after, commit.round
        return Contents(manifest, start, places, end, len(data) - end)

    def _manifest(self, data: bytes) -> tuple[Manifest, int]:
        if not data.startswith(_TITLE):
            raise UserError(f"{self.path}: not a ledger: it does not begin with {_TITLE.decode().strip()!r}")
        try:
            (length,), at = numbers(data, len(_TITLE), 1)
            packed, end = data[at : at + length], at + length + 32
            if hashlib.sha256(packed).digest() != data[at + length : end]:
                raise ValueError("its SHA-256 is another")
        except ValueError as error:
            raise UserError(f"{self.path}: its manifest is damaged: {error}") from error
        try:
            manifest = Manifest.unpack(packed)
            if manifest.pack() != packed:
                raise ValueError("its manifest is written in another way")
        except ValueError as error:
            raise UserError(f"{self.path}: cannot be read: {error}") from error
        return manifest, end

    def _bodies(self, data: bytes, at: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield each complete commit, its check, and the start of the next."""
        while (body := at + _LENGTH) <= len(data):
            length, rest = divmod(int.from_bytes(data[at:body], "little"), _PRIME)
            if rest:
                raise UserError(f"{self.path}: damaged at byte {at}: no commit has such a length")
            end = body + length + _HEAD
            if end > len(data):
                return
            yield data[body : body + length], data[end - _HEAD : end], end
            at = end
