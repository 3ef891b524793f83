"""A ledger that is the model: what it starts from, and each round's commit, which says who has sent which codes.

Whoever has the initial model and the ledger has the model after any round, to the bit. Heads chain it: a commit's head
is the SHA-256 of the head before it and of the commit, and the first head is the manifest's.
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
    """What a ledger's bytes mean."""

    run: int  # the key of all directions
    layout: list[tuple[str, list[int]]]  # names and shapes of the parameters, in the order of the vector
    initial: str  # SHA-256 of the vector that everyone starts from, as `fedshare.tensors.digest`
    codes: str  # what codes stand for
    directions: str  # where parameters move
    fraction: int  # bits behind the point of the sums
    pool: int = 0  # how many messages have directions of their own; 0: all
    format: int = field(default=FORMAT)

    def pack(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, data: bytes) -> "Manifest":
        """Raises ValueError where it is none, or one of a newer format."""
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
        """The vector as named parameters, which are views of it."""
        pieces = vector.split([math.prod(shape) for _, shape in self.layout])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.layout, pieces, strict=True)}

    @property
    def head(self) -> str:
        return hashlib.sha256(self.pack()).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A round: what each integer of it is multiplied by, and the codes by peer."""

    round: int
    step: int
    said: dict[int, bytes]

    def pack(self) -> bytes:
        """Numbers in as few bytes as they need. Peers ascend, so that of each only the distance is told."""
        body = number(self.round) + number(self.step) + number(len(self.said))
        last = -1
        for peer, codes in sorted(self.said.items()):
            body += number(peer - last - 1) + number(len(codes)) + codes
            last = peer
        return bytes(body)

    @classmethod
    def unpack(cls, body: bytes) -> "Commit":
        """Raises ValueError where `pack` gives no such bytes."""
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
    """A commit as one of several."""
    body = commit.pack()
    return bytes(number(len(body))) + body


def unframed(data: bytes) -> Iterator[tuple[int, Commit]]:
    """The commits of which `data` was joined, and where each ends. Raises ValueError where it was not."""
    at = 0
    while at < len(data):
        (length,), start = numbers(data, at, 1)
        at = start + length
        if at > len(data):
            raise ValueError("a commit is cut short")
        yield at, Commit.unpack(data[start:at])


def number(value: int) -> bytearray:
    """Seven bits a byte, the lowest first; the eighth says that there are more."""
    if value < 0:
        raise ValueError(f"{value}: negative")
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return written


def numbers(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """So many numbers from `at` on, and where they end."""
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
