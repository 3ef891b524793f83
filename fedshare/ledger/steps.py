"""The step size of a round, as an integer: whole numbers alone, so that all peers agree."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import isqrt

SCALINGS = ("sum", "root", "mean")


@dataclass(frozen=True)
class Steps:
    """`lr` rises over the rounds of the `warmup`, and falls evenly from there to zero at round `horizon`; 0: it stays.

    `scaling` says what becomes of a round's steps: their sum, or that divided by their number or the root of it.
    """

    lr: float
    scaling: str = "sum"
    warmup: int = 0
    horizon: int = 0

    @property
    def bits(self) -> int:
        """Of the integers behind the point."""
        return self._precision[0]

    @property
    def whole(self) -> int:
        """`lr` in units of ``2**-bits``: 64 to 127; where it is to be divided, a million or two."""
        return self._precision[1]

    @cached_property
    def _precision(self) -> tuple[int, int]:
        least = 64 if self.scaling == "sum" else 2**20
        bits, step = 0, Fraction(self.lr)
        while step < least:
            bits, step = bits + 1, step * 2
        return bits, round(step)

    def at(self, round: int, count: int) -> int:
        """What each of a round's `count` integers is multiplied by."""
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
