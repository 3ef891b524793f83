"""Directions that are never sent: every parameter's sign, +1 or -1, is computed from a message's origin.

A message has up to eight probes, which share one random byte per parameter, one bit each. Any part of the directions
can be computed from the origin, and at most a block is held at a time.
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

BLOCK = 2**18  # parameters computed at a time, so that their data fit in the cache
PROBES = 8
LIMIT = 2**36  # largest number of parameters in a model
_FEW = 2**12
_MANY = 2**17  # from this many parameters on, a table for two messages is worth building
_TAKEN = 2**16  # parameters looked up at a time: numpy makes an 8-byte index of each random byte

# Each probe's sign for each byte: a set bit means +1.
SIGNS = np.array([[1 if byte >> probe & 1 else -1 for byte in range(256)] for probe in range(PROBES)])


@dataclass(frozen=True)
class Origin:
    """The origin of a message, from which its directions follow.

    The run is Philox's key. From the lowest bit, its counter has the position in the model in groups of sixteen
    parameters (32 bits), the sequence (64) and the peer (32). Nothing is hashed, so no two messages of a run share a
    counter.
    """

    run: int  # below 2**64
    peer: int  # below 2**32
    sequence: int  # below 2**64; the number of this message among the peer's

    def __post_init__(self) -> None:
        for value, bits in ((self.run, 64), (self.peer, 32), (self.sequence, 64)):
            if not 0 <= index(value) < 1 << bits:
                raise ValueError(f"{self}: {value} is not a number of {bits} bits")

    @property
    def words(self) -> tuple[int, int, int, int, int]:
        """The key's two words, lower first, and the counter's upper three."""
        return self.run & philox.WORD, self.run >> 32, self.sequence & philox.WORD, self.sequence >> 32, self.peer

    def counters(self, first: int, last: int) -> NDArray[np.uint64]:
        """Return Philox's counters ``[4, last - first]``, one word per row, for groups of sixteen from `first` on."""
        rows = np.empty((4, last - first), dtype=np.uint64)
        rows[0] = np.arange(first, last)
        rows[1:] = np.array(self.words[2:])[:, None]
        return rows


Entry = tuple[Origin, Sequence[int] | NDArray[np.integer]]


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each block of `size` parameters."""
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def compiled(size: int) -> ModuleType | None:
    """Return the faster module `kernels`; None without numba, with FEDSHARE_KERNELS=numpy, or for few parameters.

    For few it does not pay: the first call compiles for a second or more, unless an earlier run already has.
    """
    return None if size < _FEW or os.environ.get("FEDSHARE_KERNELS") == "numpy" else _kernels()


@cache
def _kernels() -> ModuleType | None:
    try:
        from fedshare.directions import kernels
    except (ImportError, RuntimeError):  # RuntimeError: there is no cache folder for compiled code
        return None
    return kernels


def random_bytes(origin: Origin, start: int, count: int) -> NDArray[np.uint8]:
    """Return the random bytes of `count` parameters from `start` on."""
    check_range(start, count)
    result = np.empty(count, dtype=np.uint8)
    fill(result, origin, start)
    return result


def check_range(start: int, count: int) -> None:
    if not 0 <= start <= start + count <= LIMIT:
        raise ValueError(f"parameters {start} to {start + count} of {LIMIT}")


def fill(out: NDArray[np.uint8], origin: Origin, start: int) -> None:
    """Fill `out` with random bytes of the parameters from `start` on."""
    if kernels := compiled(len(out)):
        kernels.draw(out, start, np.array(origin.words, dtype=np.uint32))
        return
    drawing = _Drawing(len(out))
    for first, last in blocks(len(out)):
        drawing.seek(start + first, start + last)
        out[first:last] = drawing.random_bytes(origin)


class _Drawing:
    """Random bytes of a range of parameters, block by block, and in each block message by message."""

    def __init__(self, size: int) -> None:
        self._counting = philox.Counting(min(size, BLOCK) // 16 + 2)

    def seek(self, start: int, end: int) -> None:
        self._part = slice(start % 16, start % 16 + end - start)
        self._counting.seek(start // 16)

    def random_bytes(self, origin: Origin) -> NDArray[np.uint8]:
        """Return the message's bytes in the current block; valid until the next call."""
        words = self._counting.words(origin.run, origin.words[2:])
        return words.reshape(-1).view(np.uint8)[self._part]


def signs(random: NDArray[np.uint8], probe: int) -> NDArray[np.int8]:
    """Return a probe's direction for the message's bytes `random`: +1 or -1."""
    if not 0 <= probe < PROBES:
        raise ValueError(f"probe {probe} of {PROBES}")
    return (random >> probe & 1).astype(np.int8) * 2 - 1


def accumulate(into: NDArray[np.integer], entries: Sequence[Entry], start: int = 0) -> None:
    """Add every entry's directions, each times its integer, to `into`, the parameters from `start` on.

    Integer sums do not depend on order: any order, blocks or threads give the same bits, and negated integers undo it.
    Nothing overflows as long as the magnitudes of all integers ever added sum to less than the limit of `into`.
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
            # A 16-bit lookup is as fast as an 8-bit one, and covers two messages' bytes.
            np.left_shift(drawing.random_bytes(origins[high]), 8, out=both, dtype=np.uint16)
            both |= drawing.random_bytes(origins[low])
            _look_up(part, np.add.outer(tables[high], tables[low]).reshape(-1), both)
        for single in range(paired, len(origins)):
            _look_up(part, tables[single], drawing.random_bytes(origins[single]))


def _look_up(into: NDArray[np.integer], table: NDArray[np.integer], random: NDArray[np.unsignedinteger]) -> None:
    for at in range(0, len(into), _TAKEN):
        into[at : at + _TAKEN] += table.take(random[at : at + _TAKEN])


def over(size: int, work: Callable[[tuple[int, int]], None]) -> None:
    """Apply `work` to all of `size` parameters, in ranges, on as many threads as torch computes on.

    A simulation with a process per core has one thread. A few blocks are one range, because threads would cost more.
    """
    count = torch.get_num_threads() if size > 4 * BLOCK else 1
    length = -(-size // (4 * count * BLOCK)) * BLOCK if count > 1 else max(size, 1)
    spread(work, ((first, min(first + length, size)) for first in range(0, size, length)), count)


def byte_table(integers: Sequence[int] | NDArray[np.integer], dtype: np.dtype) -> NDArray[np.integer]:
    """Return what is added for each random byte."""
    exact = [index(integer) for integer in integers]
    if len(exact) > PROBES or sum(map(abs, exact)) > np.iinfo(dtype).max:
        raise ValueError(f"not up to {PROBES} integers whose sum is one of {dtype}: {exact}")
    return (np.array(exact, dtype=np.int64) @ SIGNS[: len(exact)]).astype(dtype)
