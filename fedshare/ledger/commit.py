"""A ledger that is the model: its initial state, and each round's commit, which has the codes that each peer sent.

The initial model and the ledger determine the model after any round, to the bit. Heads form a hash chain: a commit's
head is the SHA-256 of the previous head and the commit, and the first head is the manifest's.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from fedshare.tensors import Tensors

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """How to interpret a ledger's bytes."""

    run: int  # the key of all directions
    layout: list[tuple[str, list[int]]]  # names and shapes of the parameters, in the order of the vector
    initial: str  # SHA-256 of the initial vector, as `fedshare.tensors.digest`
    codes: str  # name of the coding
    directions: str  # name of the kind of directions
    fraction: int  # fractional bits of the sums
    pool: int = 0  # number of distinct messages' directions; 0: each message has its own
    format: int = field(default=FORMAT)

    def pack(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, data: bytes) -> "Manifest":
        """Return the manifest. Raises ValueError if the bytes are not one, or have a newer format."""
        try:
            found: dict[str, Any] = json.loads(data)
            if found["format"] > FORMAT:
                raise ValueError(f"it has format {found['format']}; this version reads up to {FORMAT}")
            if found.keys() != {entry.name for entry in fields(cls)}:
                raise ValueError(f"its manifest has {', '.join(found)}")
            return cls(**found | {"layout": [(name, shape) for name, shape in found["layout"]]})
        except (TypeError, KeyError) as error:
            raise ValueError(f"its manifest is none: {error}") from error

    def parameters(self, vector: Tensor) -> Tensors:
        """Return the vector as named parameters, which are views of it."""
        pieces = vector.split([math.prod(shape) for _, shape in self.layout])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.layout, pieces, strict=True)}

    @property
    def head(self) -> str:
        return hashlib.sha256(self.pack()).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A round: the factor on each of its integers, and the codes by peer."""

    round: int
    step: int
    said: dict[int, bytes]

    def pack(self) -> bytes:
        """Return the commit as bytes, with variable-length numbers. Peers ascend, so only differences are stored."""
        body = number(self.round) + number(self.step) + number(len(self.said))
        last = -1
        for peer, codes in sorted(self.said.items()):
            body += number(peer - last - 1) + number(len(codes)) + codes
            last = peer
        return bytes(body)

    @classmethod
    def unpack(cls, body: bytes) -> "Commit":
        """Return the commit. Raises ValueError if `pack` never returns such bytes."""
        (round, step, count), at = numbers(body, 0, 3)
        said, peer = {}, -1
        for _ in range(count):
            (distance, length), at = numbers(body, at, 2)
            peer += distance + 1
            said[peer] = body[at : at + length]
            at += length
        commit = cls(round, step, said)
        if at != len(body) or commit.pack() != body:
            raise ValueError("not a commit")
        return commit

    def head(self, before: str) -> str:
        return head_of(before, self.pack())

    def without(self, peer: int) -> "Commit":
        return Commit(self.round, self.step, {other: codes for other, codes in self.said.items() if other != peer})


def head_of(before: str, body: bytes) -> str:
    return hashlib.sha256(bytes.fromhex(before) + body).hexdigest()


def framed(commit: Commit) -> bytes:
    """Return a commit as bytes, with its length, to be joined with others."""
    body = commit.pack()
    return bytes(number(len(body))) + body


def unframed(data: bytes) -> Iterator[tuple[int, Commit]]:
    """Yield the commits joined in `data`, and the end of each. Raises ValueError if `data` is invalid."""
    return ((end, Commit.unpack(body)) for end, body in bodies(data))


def bodies(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the packed commits joined in `data`, and the end of each. Raises ValueError if one is cut short."""
    at = 0
    while at < len(data):
        (length,), start = numbers(data, at, 1)
        at = start + length
        if at > len(data):
            raise ValueError("a commit is cut short")
        yield at, data[start:at]


def number(value: int) -> bytearray:
    """Return a number as seven bits per byte, lowest first; the eighth bit says that more follow."""
    if value < 0:
        raise ValueError(f"{value}: negative")
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return written


def numbers(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Return `count` numbers from `at` on, and the position after them."""
    found = []
    for _ in range(count):
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("a number is cut short")
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                break
        found.append(value)
    return found, at
