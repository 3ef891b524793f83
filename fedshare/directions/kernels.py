"""`message` and `perturb` in compiled loops, with the same bits.

Needs numba, the extra `fast`. Nothing here lets a compiler reorder floats.
"""

from typing import Any

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from fedshare.directions.philox import MULTIPLIERS, ROUNDS, STEPS

_TILE = 128  # groups of sixteen parameters at a time: their sums and words fit in the L1 cache
_A, _C = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_EVEN, _ODD = (np.uint32(step) for step in STEPS)
_HALF, _BYTE = np.uint64(32), np.uint32(255)


@njit(nogil=True, cache=True)
def _words(first: Any, message: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    """Compute Philox's words ``[4, tile]`` from the counter `first` on, contiguous for each word, for SIMD."""
    for i in range(_TILE):
        a, b, c, d = uint32(first + uint64(i)), message[2], message[3], message[4]
        even, odd = message[0], message[1]
        for _ in range(ROUNDS):
            left, right = uint64(a) * _A, uint64(c) * _C
            a, c = uint32(right >> _HALF) ^ b ^ even, uint32(left >> _HALF) ^ d ^ odd
            b, d = uint32(right), uint32(left)
            even, odd = uint32(even + _EVEN), uint32(odd + _ODD)
        out[0, i], out[1, i], out[2, i], out[3, i] = a, b, c, d


@njit(nogil=True, cache=True)
def accumulate(into: Any, start: int, messages: NDArray[np.uint32], tables: Any) -> None:
    """Add the value in `tables` for each byte of each message.

    Two messages are processed at a time, which halves the reads and writes of sums. An odd number needs an additional
    table of zeros.
    """
    words = np.zeros((2, 4, _TILE), dtype=np.uint32)
    width, end = 16 * _TILE, start + len(into)
    for tile in range(start - start % 16, end, width):
        place, skip = uint64(tile // 16), tile - start
        for pair in range(0, len(tables), 2):
            _words(place, messages[pair], words[0])
            if pair + 1 < len(messages):
                _words(place, messages[pair + 1], words[1])
            one, two = tables[pair], tables[pair + 1]
            if tile >= start and tile + width <= end:
                part = into[skip : skip + width]
                for i in range(_TILE):
                    for j in range(4):
                        x, y, at = words[0, j, i], words[1, j, i], 16 * i + 4 * j
                        for byte in range(4):
                            shift = uint32(8 * byte)
                            part[at + byte] += one[x >> shift & _BYTE] + two[y >> shift & _BYTE]
            else:
                for i in range(max(tile, start) - tile, min(tile + width, end) - tile):
                    word, shift = i // 4 % 4, uint32(8 * (i % 4))
                    x, y = words[0, word, i // 16], words[1, word, i // 16]
                    into[skip + i] += one[x >> shift & _BYTE] + two[y >> shift & _BYTE]


@njit(nogil=True, cache=True)
def draw(out: NDArray[np.uint8], start: int, message: NDArray[np.uint32]) -> None:
    """Write the message's random bytes from the parameter `start` on."""
    words = np.empty((4, _TILE), dtype=np.uint32)
    width, end = 16 * _TILE, start + len(out)
    for tile in range(start - start % 16, end, width):
        _words(uint64(tile // 16), message, words)
        if tile >= start and tile + width <= end:
            at = tile - start
            for i in range(_TILE):
                for j in range(4):
                    for byte in range(4):
                        out[at + 16 * i + 4 * j + byte] = words[j, i] >> uint32(8 * byte) & _BYTE
        else:
            for i in range(max(tile, start) - tile, min(tile + width, end) - tile):
                out[tile - start + i] = words[i // 4 % 4, i // 16] >> uint32(8 * (i % 4)) & _BYTE


@njit(nogil=True, cache=True)
def displace(vector: Any, random: NDArray[np.uint8], masks: Any, one: Any, two: Any) -> None:
    """Add `one` and `two`, each with the sign in the bit of its mask. With a mask of 0, the number must be zero."""
    first, second = masks
    for i in range(len(vector)):
        x = random[i]
        vector[i] += (one if x & first else -one) + (two if x & second else -two)


@njit(nogil=True, cache=True)
def look_up(vector: Any, random: NDArray[np.uint8], table: Any) -> None:
    for i in range(len(vector)):
        vector[i] += table[random[i]]
