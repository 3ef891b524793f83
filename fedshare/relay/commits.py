"""Commits: a round's entries, in their order, chained by SHA-256 and signed by the relay."""

import hashlib
import struct
from dataclasses import dataclass

from fedshare.identity.signing import SIGNATURE, Signer, Verifier
from fedshare.relay.entries import Entry

_HEADER = struct.Struct("<16sQQI")  # magic, round, epoch, number of entries
_MAGIC = b"fedshare commit1"
_HEAD = struct.Struct("<16s32sQ32s")
_SAYS = b"fedshare head 1\0"
_STATUS = b"fedshare stat 1\0"


@dataclass(frozen=True)
class Commit:
    """Round `round` of a log, by the relay of `epoch`; round 0 holds the manifest and the first admissions."""

    round: int
    epoch: int
    entries: tuple[Entry, ...]

    def head(self, before: bytes) -> bytes:
        """Return the chain's head after this commit; `before` is the head before it."""
        return hashlib.sha256(before + self._header() + b"".join(one.statement() for one in self.entries)).digest()

    def pack(self) -> bytes:
        return self._header() + b"".join(one.pack() for one in self.entries)

    def _header(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.round, self.epoch, len(self.entries))

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> "Commit":
        """Raises ValueError on anything but the bytes of one commit."""
        if len(data) < _HEADER.size:
            raise ValueError("a commit is cut off")
        magic, round, epoch, count = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("no commit of this format")
        rest, entries = memoryview(data)[_HEADER.size :], list[Entry]()
        for _ in range(count):  # each takes bytes, so that a lie about their number ends soon
            entry, rest = Entry.unpack(rest)
            entries.append(entry)
        if rest:
            raise ValueError("a commit is followed by other bytes")
        return cls(round, epoch, tuple(entries))


@dataclass(frozen=True)
class Head:
    """The end of a log after `round`, as its relay has signed it."""

    round: int
    head: bytes
    signature: bytes

    @classmethod
    def signed(cls, signer: Signer, run: bytes, round: int, head: bytes) -> "Head":
        return cls(round, head, signer.sign(_HEAD.pack(_SAYS, run, round, head)))

    def holds(self, verifier: Verifier, run: bytes) -> bool:
        """Whether the relay with this key has signed it."""
        if len(self.signature) != SIGNATURE or len(self.head) != 32:
            return False
        return verifier.accepts(_HEAD.pack(_SAYS, run, self.round, self.head), self.signature)


def status_part(run: bytes, round: int, head: bytes, nonce: bytes) -> bytes:
    """Return what a relay signs when it is asked where its log ends; `nonce`, 32 bytes, is the asker's."""
    return _HEAD.pack(_STATUS, run, round, head) + nonce


def start(run: bytes) -> bytes:
    """Return the head before the first commit."""
    return hashlib.sha256(b"fedshare log 1\0" + run).digest()
