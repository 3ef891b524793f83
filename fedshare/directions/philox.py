"""Philox4x32-10: counter-based random numbers in exact integers, the same on every machine.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). For each key it is a
permutation of the counters, so any part of a stream can be computed on its own.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
STEPS = 0x9E3779B9, 0xBB67AE85  # added to the key's two words in each round
WORD = 2**32 - 1

_HALF, _LOW = np.uint64(32), np.uint64(WORD)
_A, _C = (np.array(multiplier, dtype=np.uint64) for multiplier in MULTIPLIERS)


def words(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return four random words ``[n, 4]`` for each of the counters ``[4, n]``, lowest word first, with this key."""
    a, b, c, d = counters
    for even, odd in keys(key):
        left, right = a * _A, c * _C
        a, c = right >> _HALF, left >> _HALF
        # In place, because new arrays would double the cost.
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


def keys(key: int) -> list[tuple[int, int]]:
    """Return the key's two words in each round."""
    return [((key + turn * STEPS[0]) & WORD, ((key >> 32) + turn * STEPS[1]) & WORD) for turn in range(ROUNDS)]


class Counting:
    """The words of `size` consecutive counters (in their lowest word), for varying upper words.

    Same results as `words`, in half the time: the part common to all upper words is computed once, words that do not
    depend on the lowest one are single numbers for two rounds, and no array is allocated.
    """

    def __init__(self, size: int) -> None:
        self._count = np.arange(size, dtype="<u8")
        self._high, self._low = np.empty_like(self._count), np.empty_like(self._count)
        self._state = np.zeros((2, size), dtype="<u8")  # the words a and c; their upper halves stay zero
        # Products for c and a, of this round and the last. Halves are read in place, with a stride: one slow call
        # instead of a shift, a mask and an exclusive or.
        self._products = [_halves(np.empty((2, size), dtype="<u8")) for _ in range(2)]
        self._result = np.empty((size, 4), dtype="<u4")

    def seek(self, first: int) -> None:
        """Start counting at `first`."""
        np.add(self._count, _word(first), self._low)
        self._low *= _A
        np.right_shift(self._low, _HALF, self._high)
        self._low &= _LOW

    def words(self, key: int, rest: tuple[int, int, int]) -> NDArray[np.uint32]:
        """Return the words ``[size, 4]``, valid until the next call. `rest` has the counter's upper three words."""
        size, result, rounds = len(self._result), self._result, _arrays(key)
        (a, c), (now, last) = self._state, self._products
        (even, odd), (even2, odd2) = keys(key)[:2]
        b, third, d = rest

        product = MULTIPLIERS[1] * third
        first, b = product >> 32 ^ b ^ even, product & WORD
        np.bitwise_xor(self._high, _word(d ^ odd), c)

        product, (products, _, _) = MULTIPLIERS[0] * first, now
        np.multiply(c, _C, products[0])
        np.right_shift(products[0], _HALF, a)
        np.bitwise_xor(a, _word(b ^ even2), a)
        np.bitwise_xor(self._low, _word(product >> 32 ^ odd2), c)
        products[1] = product & WORD

        lower = self._state.reshape(-1).view("<u4")[::2]
        for even_word, odd_word in rounds[2:-1]:
            now, last = last, now
            (products, _, high), (_, low, _) = now, last
            np.multiply(c, _C, products[0])
            np.multiply(a, _A, products[1])
            np.bitwise_xor(high, low, lower)
            np.bitwise_xor(a, even_word, a)
            np.bitwise_xor(c, odd_word, c)

        (products, low, high), (before, low_before, _) = last, now
        np.multiply(c, _C, products[0])
        np.multiply(a, _A, products[1])
        for row, word in enumerate(rounds[-1]):
            part = slice(row * size, (row + 1) * size)
            np.bitwise_xor(before[row], word, before[row])
            np.bitwise_xor(high[part], low_before[part], result[:, 2 * row])
            result[:, 2 * row + 1] = low[part]
        return result


def _halves(array: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the array, and views of all its lower and upper halves."""
    halves = array.reshape(-1).view("<u4")
    return array, halves[::2], halves[1::2]


def _word(number: int) -> NDArray[np.uint64]:
    return np.array(number, dtype=np.uint64)  # numpy is faster with zero-dimensional arrays than with scalars


@lru_cache(maxsize=64)
def _arrays(key: int) -> list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    return [(_word(even), _word(odd)) for even, odd in keys(key)]
