"""Random numbers that nobody can foresee who does not know their key.

`fedshare.seeds` is not made for that: torch's generator is an mt19937, of which 624 numbers tell all others.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from fedshare.seeds import Key

_BLOCK = 1 << 20  # numbers a call of SHAKE, which gives less than 2**29 bytes


class Stream:
    """The numbers named `key`, one after another: SHAKE-256 (FIPS 202) of key and position, the same everywhere.

    With a secret in the key it is a cryptographic generator. What is left is that a float is not a real number: the
    last bits of a sum with noise may tell more than the theory allows (Mironov 2012, "On Significance of the Least
    Significant Bits for Differential Privacy"). Nothing is done about that.
    """

    def __init__(self, *key: Key) -> None:
        self._key, self._block = key, 0

    def uniform(self, count: int) -> Tensor:
        """float64 ``[count]``, uniform in (0, 1), of 52 random bits each; on the CPU."""
        blocks = [self._next(min(_BLOCK, count - start)) for start in range(0, count, _BLOCK)]
        return torch.from_numpy(np.concatenate(blocks) if blocks else np.zeros(0))

    def normal(self, count: int) -> Tensor:
        """float64 ``[count]``, normal with deviation 1; on the CPU."""
        return torch.special.ndtri(self.uniform(count))

    def _next(self, count: int) -> np.ndarray:
        self._block += 1
        data = hashlib.shake_256(repr((*self._key, self._block)).encode()).digest(8 * count)
        # In the middle of 2**52 equal parts: neither 0 nor 1, of which there is no quantile.
        return ((np.frombuffer(data, "<u8") >> np.uint64(12)) + 0.5) * 2.0**-52
