"""Random numbers that cannot be predicted without their key.

`fedshare.seeds` is not made for that: torch's generator is an mt19937, whose state follows from 624 outputs.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from fedshare.seeds import Key

_BLOCK = 1 << 20  # numbers per call of SHAKE, which returns less than 2**29 bytes


class Stream:
    """The numbers named `key`, in sequence: SHAKE-256 (FIPS 202) of key and position, the same on every machine.

    With a secret in the key it is a cryptographic generator. One weakness remains, because floats are not real numbers:
    the last bits of a sum with noise may reveal more than the theory allows (Mironov 2012, "On Significance of the
    Least Significant Bits for Differential Privacy"). This is not mitigated.
    """

    def __init__(self, *key: Key) -> None:
        self._key, self._block = key, 0

    def uniform(self, count: int) -> Tensor:
        """Return float64 ``[count]``, uniform in (0, 1), from 52 random bits each; on the CPU."""
        blocks = [self._next(min(_BLOCK, count - start)) for start in range(0, count, _BLOCK)]
        return torch.from_numpy(np.concatenate(blocks) if blocks else np.zeros(0))

    def normal(self, count: int) -> Tensor:
        """Return float64 ``[count]``, standard normal; on the CPU."""
        return torch.special.ndtri(self.uniform(count))

    def _next(self, count: int) -> np.ndarray:
        self._block += 1
        data = hashlib.shake_256(repr((*self._key, self._block)).encode()).digest(8 * count)
        # Midpoints of 2**52 equal intervals: never 0 or 1, whose normal quantiles are infinite.
        return ((np.frombuffer(data, "<u8") >> np.uint64(12)) + 0.5) * 2.0**-52
