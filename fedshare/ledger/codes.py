"""A number in one byte: a bit for its sign, and seven for its magnitude, in eight steps an octave.

A byte stands for an integer, and everyone adds up that integer, its sender too. Of the 256 one is zero, one says that
there is nothing (what was measured is not finite), and the others are 127 magnitudes, from 19 to 2**20 units, and
their negatives.
"""

import hashlib
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNIT = 2.0**-13  # of the integers: the magnitudes are from 0.0023 to 128
ZERO, ONE, NEGATIVE = 0, 71, 0x80
NOTHING = ZERO | NEGATIVE

# 2**(n / 8), rounded, for n from 34 to 160; by roots of integers, as a float's last bits are a machine's own.
_MAGNITUDES = np.array([0, *((isqrt(isqrt(isqrt(1 << (n + 8)))) + 1) // 2 for n in range(34, 161))])

INTEGERS = np.concatenate([_MAGNITUDES, -_MAGNITUDES])  # what to add for a code; for nothing it is 0
VALUES = np.where(np.arange(256) == NOTHING, np.nan, INTEGERS * UNIT)  # the numbers they are near; for nothing, NaN
DIGEST = hashlib.sha256(INTEGERS.astype("<i4").tobytes()).hexdigest()
INTEGERS.setflags(write=False)
VALUES.setflags(write=False)


def encode(values: ArrayLike, threshold: ArrayLike = 0.5) -> NDArray[np.uint8]:
    """The codes of `values`: of the two around each the upper, if it is more than `threshold` of the way there.

    So a half gives the nearest, at most 5 % off from the least magnitude to the largest, and numbers uniform in [0, 1)
    give codes that are right on average. What is beyond the largest becomes it; below the least there is zero.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    size = np.where(finite, np.minimum(np.abs(values), VALUES[ONE:NEGATIVE].max()), 0.0) / UNIT
    below = np.searchsorted(_MAGNITUDES, size, side="right") - 1
    above = np.minimum(below + 1, NEGATIVE - 1)
    low, high = _MAGNITUDES[below], _MAGNITUDES[above]
    code = np.where(size - low > threshold * (high - low), above, below)
    # A small negative number that is rounded to zero is zero, not nothing.
    code = np.where((values < 0) & (code != ZERO), code | NEGATIVE, code)
    return np.where(finite, code, NOTHING).astype(np.uint8)


def encode_sign(values: ArrayLike) -> NDArray[np.uint8]:
    """The codes of 1 and -1 for `values` of that sign: one bit of each. Zero stays zero, and nothing nothing."""
    values = np.asarray(values, dtype=np.float64)
    return encode(np.where(np.isfinite(values), np.sign(values), np.nan))
