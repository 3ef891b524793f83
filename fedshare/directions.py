"""Directions that need no sending: every parameter's sign, +1 or -1, follows from who sends what message.

A message has up to eight probes, and they share one random byte a parameter, a bit each. Whoever knows a message's
origin has any part of its directions, and never holds more of one than a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from operator import index

import numpy as np
from numpy.typing import NDArray

from fedshare import philox
from fedshare.threads import spread

BLOCK = 2**16  # parameters that are computed at a time: what they need stays in the cache
PROBES = 8
LIMIT = 2**36  # parameters of a model

# What each probe's sign is for each byte: a bit that is set stands for +1.
_SIGNS = np.array([[1 if byte >> probe & 1 else -1 for byte in range(256)] for probe in range(PROBES)])


@dataclass(frozen=True)
class Origin:
    """The message that the directions belong to.

    The run is Philox's key. Its counter is, from the lowest bit on: the place in the model, in sixteens of parameters,
    32 bits; the sequence, 64; the peer, 32. Nothing is hashed, so that no two messages of a run share a counter.
    """

    run: int  # below 2**64
    peer: int  # below 2**32
    sequence: int  # below 2**64; the how many-th message of that peer

    def __post_init__(self) -> None:
        for value, bits in zip(astuple(self), (64, 32, 64), strict=True):
            if not 0 <= index(value) < 1 << bits:
                raise ValueError(f"{self}: {value} is not a number of {bits} bits")

    def counters(self, first: int, last: int) -> NDArray[np.uint64]:
        """Philox's counters ``[4, last - first]``, a word a row, of the sixteens of parameters from `first` on."""
        rows = np.empty((4, last - first), dtype=np.uint64)
        rows[0] = np.arange(first, last)
        rows[1:] = [[self.sequence & 0xFFFFFFFF], [self.sequence >> 32], [self.peer]]
        return rows


Entry = tuple[Origin, Sequence[int] | NDArray[np.integer]]


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """From where to where each of the blocks of `size` parameters goes."""
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def random_bytes(origin: Origin, start: int, count: int) -> NDArray[np.uint8]:
    """The random bytes of `count` parameters from `start` on."""
    if not 0 <= start <= start + count <= LIMIT:
        raise ValueError(f"parameters {start} to {start + count} of {LIMIT}")
    first, last = start // 16, -(-(start + count) // 16)
    words = philox.words(origin.run, origin.counters(first, last))
    return words.reshape(-1).view(np.uint8)[start - 16 * first :][:count]


def signs(random: NDArray[np.uint8], probe: int) -> NDArray[np.int8]:
    """The direction of a probe where the message's bytes are `random`: +1 or -1."""
    if not 0 <= probe < PROBES:
        raise ValueError(f"probe {probe} of {PROBES}")
    return (random >> probe & 1).astype(np.int8) * 2 - 1


def accumulate(into: NDArray[np.integer], entries: Sequence[Entry], start: int = 0) -> None:
    """Add every entry's directions, each times its integer, to `into`: the parameters from `start` on.

    Sums of integers know no order: any order, blocks or threads give the same bits, and the negated integers undo it.
    Let the magnitudes of all that is ever added sum to less than what `into` holds, and nothing overflows.
    """
    if into.dtype not in (np.int32, np.int64):
        raise TypeError(f"integers are summed in int32 or int64, not {into.dtype}")
    tables = [(origin, _table(integers, into.dtype)) for origin, integers in entries]

    def add(block: tuple[int, int]) -> None:
        first, last = block
        for origin, table in tables:
            into[first:last] += table.take(random_bytes(origin, start + first, last - first))

    if len(into) <= BLOCK:  # threads would cost more than they give
        add((0, len(into)))
    else:
        spread(add, blocks(len(into)))


def _table(integers: Sequence[int] | NDArray[np.integer], dtype: np.dtype) -> NDArray[np.integer]:
    """What is added for each random byte."""
    exact = [index(integer) for integer in integers]
    if len(exact) > PROBES or sum(map(abs, exact)) > np.iinfo(dtype).max:
        raise ValueError(f"not up to {PROBES} integers whose sum is one of {dtype}: {exact}")
    return (np.array(exact, dtype=np.int64) @ _SIGNS[: len(exact)]).astype(dtype)
