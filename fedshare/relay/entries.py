"""The entries of a log: what a peer says, and what the relay notes about peers, in a fixed layout."""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from fedshare.identity.signing import PUBLIC, SIGNATURE, signed_part

RELAY = 2**32 - 1  # the peer of the relay's own entries, which the signature of their commit covers
MOST_PEERS = 10_000
LARGEST = 2**63 - 1  # of numbers and rounds: what the storage holds
REASON = 200  # characters

_ENTRY = struct.Struct("<BIQQI64s")  # kind, peer, number, round, bytes of the body, signature
STATEMENT = _ENTRY.size + 32
_PEER = struct.Struct("<I")


class Kind(IntEnum):
    """What an entry's body means. The numbers are part of the format."""

    MANIFEST = 0  # of the relay, first: the run's name and the relay's public key
    MESSAGE = 1  # of a peer, in a round: opaque
    ADMIT = 2  # of the relay: a peer's number, its public key, and its certificate
    LEAVE = 3  # of a peer: it takes part up to the round before
    REMOVE = 4  # of the relay: a peer's number, why, and the proof if there is one
    ATTEST = 5  # of a peer: the SHA-256 of its state after the round before
    FENCE = 6  # of the relay: the epoch that begins


SAID = Kind.MESSAGE, Kind.LEAVE, Kind.ATTEST  # by peers


@dataclass(frozen=True, slots=True)
class Entry:
    """`number` counts what `peer` says, from 1. `round` is the round it is for."""

    kind: int
    peer: int
    number: int
    round: int
    body: bytes
    signature: bytes = bytes(SIGNATURE)

    def signed(self, run: bytes, head: bytes) -> bytes:
        """Return the bytes under the signature. `head` is that of the commit before the entry's round.

        The body is represented by its SHA-256, so that a proof needs no body; the head is never sent, because both ends
        have it: a relay that shows its peers different logs cannot pass on what they say.
        """
        said = head + hashlib.sha256(self.body).digest()
        return signed_part(run, self.peer, self.number, self.round, self.kind, said)

    def statement(self) -> bytes:
        """Return the entry with the SHA-256 of its body instead of the body."""
        return self._fixed() + hashlib.sha256(self.body).digest()

    def pack(self) -> bytes:
        return self._fixed() + self.body

    def _fixed(self) -> bytes:
        return _ENTRY.pack(self.kind, self.peer, self.number, self.round, len(self.body), self.signature)

    @classmethod
    def unpack(cls, data: memoryview) -> tuple["Entry", memoryview]:
        """Return the first entry of `data`, and the rest. Raises ValueError."""
        if len(data) < _ENTRY.size:
            raise ValueError("an entry is cut off")
        kind, peer, number, round, size, signature = _ENTRY.unpack_from(data)
        if len(data) < _ENTRY.size + size:
            raise ValueError("an entry's body is cut off")
        end = _ENTRY.size + size
        return cls(kind, peer, number, round, bytes(data[_ENTRY.size : end]), signature), data[end:]


def manifest(run: bytes, key: bytes) -> Entry:
    return Entry(Kind.MANIFEST, RELAY, 1, 0, run + key)


def admit(number: int, round: int, peer: int, key: bytes, certificate: bytes) -> Entry:
    """Return the entry that admits `peer`, with its public signing key and, over TLS, the certificate that names it."""
    return Entry(Kind.ADMIT, RELAY, number, round, _PEER.pack(peer) + key + certificate)


def admitted(entry: Entry) -> tuple[int, bytes, bytes]:
    """Return the peer, its key and its certificate. Raises ValueError."""
    if len(entry.body) < _PEER.size + PUBLIC:
        raise ValueError("an admission is cut off")
    rest = entry.body[_PEER.size :]
    return _PEER.unpack_from(entry.body)[0], rest[:PUBLIC], rest[PUBLIC:]


def remove(number: int, round: int, peer: int, reason: str, proof: bytes = b"") -> Entry:
    """Return the entry that removes `peer`. `proof`: see `fedshare.relay.proofs`."""
    text = reason.encode()[:255]
    return Entry(Kind.REMOVE, RELAY, number, round, _PEER.pack(peer) + bytes([len(text)]) + text + proof)


def removed(entry: Entry) -> tuple[int, str, bytes]:
    """Return the peer, the reason and the proof. Raises ValueError."""
    start = _PEER.size + 1
    if len(entry.body) < start or len(entry.body) < start + entry.body[_PEER.size]:
        raise ValueError("a removal is cut off")
    end = start + entry.body[_PEER.size]
    return _PEER.unpack_from(entry.body)[0], entry.body[start:end].decode(errors="replace"), entry.body[end:]
