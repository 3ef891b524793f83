"""Philox4x32-10: random numbers by counting, exact integers that are the same on every machine.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). For each key it is a
permutation of the counters, so that any part of a stream is had without what comes before.
"""

import numpy as np
from numpy.typing import NDArray

_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)
_A, _C = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # the multipliers
_STEPS = 0x9E3779B9, 0xBB67AE85  # of the two words of the key, from round to round


def words(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Four random words ``[n, 4]`` for each of the counters ``[4, n]``, the lowest word first, as of `key`."""
    a, b, c, d = counters
    for turn in range(10):
        even, odd = ((word + turn * step) % 2**32 for word, step in zip((key, key >> 32), _STEPS, strict=True))
        left, right = a * _A, c * _C
        a, c = right >> _HALF, left >> _HALF
        # In place: new arrays would cost as much again.
        a ^= b
        a ^= np.uint64(even)
        c ^= d
        c ^= np.uint64(odd)
        right &= _LOW
        left &= _LOW
        b, d = right, left
    result = np.empty((len(a), 4), dtype="<u4")
    result[:, 0], result[:, 1], result[:, 2], result[:, 3] = a, b, c, d
    return result
