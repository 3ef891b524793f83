"""A round's step size, computed in integers so that all peers agree."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import isqrt

SCALINGS = ("sum", "root", "mean")


@dataclass(frozen=True)
class Steps:
    """`lr` rises over the `warmup` rounds, then falls linearly to zero at round `horizon`; with 0, it is constant.

    `scaling` combines a round's steps: their sum, or that divided by their number or its square root.
    """

    lr: float
    scaling: str = "sum"
    warmup: int = 0
    horizon: int = 0

    @property
    def bits(self) -> int:
        """The number of fractional bits of the integers."""
        return self._precision[0]

    @property
    def whole(self) -> int:
        """`lr` in units of ``2**-bits``: 64 to 127, or one to two million if it will be divided."""
        return self._precision[1]

    @cached_property
    def _precision(self) -> tuple[int, int]:
        least = 64 if self.scaling == "sum" else 2**20
        bits, step = 0, Fraction(self.lr)
        while step < least:
            bits, step = bits + 1, step * 2
        return bits, round(step)

    def at(self, round: int, count: int) -> int:
        """Return the factor on each of a round's `count` integers."""
        whole = self.whole
        if round <= self.warmup:
            whole = max(whole * round // self.warmup, 1)
        elif self.horizon:
            if round >= self.horizon:
                return 0
            whole = max(whole * (self.horizon - round) // (self.horizon - self.warmup), 1)
        if self.scaling == "mean":
            whole = (whole + count // 2) // count
        elif self.scaling == "root":
            whole = isqrt(whole * whole // count)
        return max(whole, 1)
