"""A number in one byte: a sign bit, and seven bits for the magnitude, in eight steps per octave.

A byte stands for an integer, which everyone adds up, the sender included. Of the 256 codes one is zero, one means that
there is no value (the measurement was not finite), and the others are 127 magnitudes, from 19 to 2**20 units, and their
negatives.
"""

import hashlib
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNIT = 2.0**-13  # of the integers: the magnitudes are from 0.0023 to 128
ZERO, ONE, NEGATIVE = 0, 71, 0x80
NOTHING = ZERO | NEGATIVE

# 2**(n / 8), rounded, for n from 34 to 160; by integer roots, because a float's last bits depend on the machine.
_MAGNITUDES = np.array([0, *((isqrt(isqrt(isqrt(1 << (n + 8)))) + 1) // 2 for n in range(34, 161))])

INTEGERS = np.concatenate([_MAGNITUDES, -_MAGNITUDES])  # the integer to add for each code; 0 for no value
VALUES = np.where(np.arange(256) == NOTHING, np.nan, INTEGERS * UNIT)  # what the codes approximate; NaN for no value
DIGEST = hashlib.sha256(INTEGERS.astype("<i4").tobytes()).hexdigest()
INTEGERS.setflags(write=False)
VALUES.setflags(write=False)


def encode(values: ArrayLike, threshold: ArrayLike = 0.5) -> NDArray[np.uint8]:
    """Return the codes of `values`, rounded up in magnitude if beyond the fraction `threshold` between two codes.

    A threshold of a half rounds to the nearest, with an error of at most 5 % from the smallest magnitude to the
    largest; uniform random thresholds in [0, 1) make the rounding unbiased. Values beyond the largest magnitude are
    clipped to it; the code below the smallest is zero.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    size = np.where(finite, np.minimum(np.abs(values), VALUES[ONE:NEGATIVE].max()), 0.0) / UNIT
    below = np.searchsorted(_MAGNITUDES, size, side="right") - 1
    above = np.minimum(below + 1, NEGATIVE - 1)
    low, high = _MAGNITUDES[below], _MAGNITUDES[above]
    code = np.where(size - low > threshold * (high - low), above, below)
    # A small negative number that is rounded to zero must get the code of zero, not of no value.
    code = np.where((values < 0) & (code != ZERO), code | NEGATIVE, code)
    return np.where(finite, code, NOTHING).astype(np.uint8)


def encode_sign(values: ArrayLike) -> NDArray[np.uint8]:
    """Return the codes of 1 and -1 for the signs of `values`, one bit each. Zero stays zero, not finite is no value."""
    values = np.asarray(values, dtype=np.float64)
    return encode(np.where(np.isfinite(values), np.sign(values), np.nan))
