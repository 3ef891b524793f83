"""Directions that need no sending: every parameter's sign, +1 or -1, follows from who sends what message.

A message has up to eight probes, and they share one random byte a parameter, a bit each. Whoever knows a message's
origin has any part of its directions, and never holds more of one than a block.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from fedshare.directions import philox
from fedshare.machine.threads import spread

BLOCK = 2**18  # parameters that are computed at a time: what they need stays in the cache
PROBES = 8
LIMIT = 2**36  # parameters of a model
_FEW = 2**12
_MANY = 2**17  # parameters from which on a table of two messages is worth its making
_TAKEN = 2**16  # parameters that are looked up at a time: numpy makes an index of 8 bytes of each random one

# What each probe's sign is for each byte: a bit that is set stands for +1.
SIGNS = np.array([[1 if byte >> probe & 1 else -1 for byte in range(256)] for probe in range(PROBES)])


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
        for value, bits in ((self.run, 64), (self.peer, 32), (self.sequence, 64)):
            if not 0 <= index(value) < 1 << bits:
                raise ValueError(f"{self}: {value} is not a number of {bits} bits")

    @property
    def words(self) -> tuple[int, int, int, int, int]:
        """The key's two, the lower first, and the upper three of the counter."""
        return self.run & philox.WORD, self.run >> 32, self.sequence & philox.WORD, self.sequence >> 32, self.peer

    def counters(self, first: int, last: int) -> NDArray[np.uint64]:
        """Philox's counters ``[4, last - first]``, a word a row, of the sixteens of parameters from `first` on."""
        rows = np.empty((4, last - first), dtype=np.uint64)
        rows[0] = np.arange(first, last)
        rows[1:] = np.array(self.words[2:])[:, None]
        return rows


Entry = tuple[Origin, Sequence[int] | NDArray[np.integer]]


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """From where to where each of the blocks of `size` parameters goes."""
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def compiled(size: int) -> ModuleType | None:
    """`kernels`, which does the same faster; None without numba, and with FEDSHARE_KERNELS=numpy.

    None for a few parameters too: the first call compiles, for a second or more, where no other run has.
    """
    return None if size < _FEW or os.environ.get("FEDSHARE_KERNELS") == "numpy" else _kernels()


@cache
def _kernels() -> ModuleType | None:
    try:
        from fedshare.directions import kernels
    except (ImportError, RuntimeError):  # RuntimeError: there is no folder for what is compiled
        return None
    return kernels


def random_bytes(origin: Origin, start: int, count: int) -> NDArray[np.uint8]:
    """The random bytes of `count` parameters from `start` on."""
    check_range(start, count)
    result = np.empty(count, dtype=np.uint8)
    fill(result, origin, start)
    return result


def check_range(start: int, count: int) -> None:
    if not 0 <= start <= start + count <= LIMIT:
        raise ValueError(f"parameters {start} to {start + count} of {LIMIT}")


def fill(out: NDArray[np.uint8], origin: Origin, start: int) -> None:
    """Random bytes of the parameters from `start` on, as many as `out` takes."""
    if kernels := compiled(len(out)):
        kernels.draw(out, start, np.array(origin.words, dtype=np.uint32))
        return
    drawing = _Drawing(len(out))
    for first, last in blocks(len(out)):
        drawing.seek(start + first, start + last)
        out[first:last] = drawing.random_bytes(origin)


class _Drawing:
    """The random bytes of some parameters, a block after the other, and there of one message after the other."""

    def __init__(self, size: int) -> None:
        self._counting = philox.Counting(min(size, BLOCK) // 16 + 2)

    def seek(self, start: int, end: int) -> None:
        self._part = slice(start % 16, start % 16 + end - start)
        self._counting.seek(start // 16)

    def random_bytes(self, origin: Origin) -> NDArray[np.uint8]:
        """Valid until the next call."""
        words = self._counting.words(origin.run, origin.words[2:])
        return words.reshape(-1).view(np.uint8)[self._part]


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
    check_range(start, len(into))
    if not entries:
        return
    origins = [origin for origin, _ in entries]
    tables = np.array([byte_table(integers, into.dtype) for _, integers in entries])
    if kernels := compiled(len(into)):
        messages = np.array([origin.words for origin in origins], dtype=np.uint32)
        if len(tables) % 2:
            tables = np.concatenate([tables, np.zeros_like(tables[:1])])

    def add(piece: tuple[int, int]) -> None:
        part, at = into[slice(*piece)], start + piece[0]
        if kernels:
            kernels.accumulate(part, at, messages, tables)
        else:
            _accumulate(part, at, origins, tables)

    over(len(into), add)


def _accumulate(into: NDArray[np.integer], start: int, origins: list[Origin], tables: NDArray[np.integer]) -> None:
    drawing = _Drawing(len(into))
    for first, last in blocks(len(into)):
        part = into[first:last]
        drawing.seek(start + first, start + last)
        paired = len(origins) // 2 * 2 if len(part) >= _MANY else 0
        both = np.empty(len(part) if paired else 0, dtype=np.uint16)
        for low, high in zip(range(0, paired, 2), range(1, paired, 2), strict=True):
            # A number of 16 bits is looked up as fast as one of eight, and is two messages' bytes.
            np.left_shift(drawing.random_bytes(origins[high]), 8, out=both, dtype=np.uint16)
            both |= drawing.random_bytes(origins[low])
            _look_up(part, np.add.outer(tables[high], tables[low]).reshape(-1), both)
        for single in range(paired, len(origins)):
            _look_up(part, tables[single], drawing.random_bytes(origins[single]))


def _look_up(into: NDArray[np.integer], table: NDArray[np.integer], random: NDArray[np.unsignedinteger]) -> None:
    for at in range(0, len(into), _TAKEN):
        into[at : at + _TAKEN] += table.take(random[at : at + _TAKEN])


def over(size: int, work: Callable[[tuple[int, int]], None]) -> None:
    """Do it to all of `size` parameters, in pieces on as many threads as torch computes on.

    That is one in a simulation that has a process a core. A few blocks are one piece: threads would cost more.
    """
    count = torch.get_num_threads() if size > 4 * BLOCK else 1
    length = -(-size // (4 * count * BLOCK)) * BLOCK if count > 1 else max(size, 1)
    spread(work, ((first, min(first + length, size)) for first in range(0, size, length)), count)


def byte_table(integers: Sequence[int] | NDArray[np.integer], dtype: np.dtype) -> NDArray[np.integer]:
    """What is added for each random byte."""
    exact = [index(integer) for integer in integers]
    if len(exact) > PROBES or sum(map(abs, exact)) > np.iinfo(dtype).max:
        raise ValueError(f"not up to {PROBES} integers whose sum is one of {dtype}: {exact}")
    return (np.array(exact, dtype=np.int64) @ SIGNS[: len(exact)]).astype(dtype)
