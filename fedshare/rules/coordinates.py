"""Rules that treat each coordinate separately.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
2018, arXiv 1803.01498, definitions 1 and 2.
"""

from dataclasses import dataclass

from torch import Tensor

from fedshare.rules.rule import at_least, trimmed, withstood


@dataclass(frozen=True)
class Median:
    """The coordinate-wise median; for an even number of clients the mean of the middle two."""

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, None]:
        return trimmed(updates, (len(updates) - 1) // 2), None


@dataclass(frozen=True)
class TrimmedMean:
    """The coordinate-wise mean without the `f` largest and the `f` smallest values; needs more than 2 f updates."""

    f: int = 2  # adversaries to withstand

    def __post_init__(self) -> None:
        at_least(0, f=self.f)

    def withstands(self, updates: int) -> int:
        return (updates - 1) // 2

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, None]:
        return trimmed(updates, withstood(self.f, self.withstands(len(updates)))), None
