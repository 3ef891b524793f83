"""Proofs that a peer or a relay has said two things, which anyone with its public key can check."""

import struct
from dataclasses import dataclass

from fedshare.identity.signing import SIGNATURE, Verifier, signed_part

_STATEMENT = struct.Struct("<BIQQ32s32s64s")  # kind, peer, number, round, head, SHA-256 of the body, signature


@dataclass(frozen=True)
class Statement:
    """What a peer has signed under a number, without the body."""

    kind: int
    peer: int
    number: int
    round: int
    head: bytes
    digest: bytes
    signature: bytes

    def holds(self, run: bytes, key: bytes) -> bool:
        said = signed_part(run, self.peer, self.number, self.round, self.kind, self.head + self.digest)
        return len(self.signature) == SIGNATURE and Verifier(key).accepts(said, self.signature)

    def pack(self) -> bytes:
        return _STATEMENT.pack(self.kind, self.peer, self.number, self.round, self.head, self.digest, self.signature)


def two_things(one: Statement, other: Statement) -> bytes:
    """Return the proof that a peer has said two things under one number."""
    return one.pack() + other.pack()


def convicts(proof: bytes, run: bytes, key: bytes) -> bool:
    """Whether `proof` shows that the peer with this public key has said two things under one number."""
    if len(proof) != 2 * _STATEMENT.size:
        return False
    one, other = (Statement(*_STATEMENT.unpack_from(proof, at)) for at in (0, _STATEMENT.size))
    same = (one.peer, one.number) == (other.peer, other.number)
    unlike = (one.kind, one.round, one.digest, one.head) != (other.kind, other.round, other.digest, other.head)
    return same and unlike and one.holds(run, key) and other.holds(run, key)
