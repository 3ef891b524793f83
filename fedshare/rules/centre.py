"""Rules that find a centre towards which distant updates pull no harder than near ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.rules.matrix import lengths, weighted
from fedshare.rules.rule import above_zero, at_least, trimmed

_STILL = 1e-7  # a change of the weights that moves nothing


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the smallest sum of distances from the updates, by the smoothed Weiszfeld algorithm.

    Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 2022, arXiv 1912.13445,
    algorithm 2, with equal client weights. It starts from the coordinate-wise median: adversaries may move the mean so
    far that it takes many iterations to return.
    """

    smoothing: float = 1e-6  # smaller distances are replaced by this, the paper's nu
    iterations: int = 50  # at most

    def __post_init__(self) -> None:
        above_zero(smoothing=self.smoothing)
        at_least(1, iterations=self.iterations)

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        point = trimmed(updates, (len(updates) - 1) // 2)
        shares = torch.zeros(len(updates), dtype=torch.float64)
        for _ in range(self.iterations):
            before = shares
            nearness = 1 / lengths(updates, point).clamp(min=self.smoothing)
            shares = nearness / nearness.sum()
            point = weighted(updates, shares)
            if (shares - before).abs().max() < _STILL:
                break
        return point, shares


@dataclass(frozen=True)
class CentredClipping:
    """The previous aggregate plus the mean of the differences of the updates from it, each clipped to a radius.

    Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, arXiv 2012.10333,
    section 4.1. The paper's clients send momentum, which predicts their next update better than our updates do.
    """

    radius: float = 1.0  # differences longer than this are clipped to it, the paper's tau
    iterations: int = 1  # each starts from the result of the one before

    def __post_init__(self) -> None:
        above_zero(radius=self.radius)
        at_least(1, iterations=self.iterations)

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, None]:
        point = centre
        for _ in range(self.iterations):
            kept = (self.radius / lengths(updates, point)).clamp(max=1)
            point = float(1 - kept.mean()) * point + weighted(updates, kept / len(updates))
        return point, None
