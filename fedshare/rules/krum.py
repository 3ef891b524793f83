"""Rules that select whole updates by the distance to their nearest neighbours.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NIPS 2017: Krum (section 4) and Multi-Krum (section 6). El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of
Distributed Learning in Byzantium", ICML 2018, arXiv 1802.07927: Bulyan (section 4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.rules.matrix import by_columns, ordered, squared_distances, weighted
from fedshare.rules.rule import at_least, withstood


@dataclass(frozen=True)
class Krum:
    """The update with the smallest sum of squared distances to its ``n - f - 2`` nearest others; needs n > 2 f + 2."""

    f: int = 2  # adversaries to withstand

    def __post_init__(self) -> None:
        at_least(0, f=self.f)

    def withstands(self, updates: int) -> int:
        return (updates - 3) // 2

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        return MultiKrum(self.f, m=1)(updates, centre)


@dataclass(frozen=True)
class MultiKrum:
    """The mean of the `m` updates with the best Krum scores."""

    f: int = 2  # adversaries to withstand
    m: int | None = None  # updates to average; None: n - f

    def __post_init__(self) -> None:
        at_least(0, f=self.f)
        if self.m is not None:
            at_least(1, m=self.m)

    def withstands(self, updates: int) -> int:
        return (updates - 3) // 2

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        n = len(updates)
        f = withstood(self.f, self.withstands(n))
        m = min(n, self.m or n - f)
        best = ranked(squared_distances(updates), f)[:m]
        weights = torch.zeros(n, dtype=torch.float64)
        weights[best] = 1 / m
        return weighted(updates, weights), weights


@dataclass(frozen=True)
class Bulyan:
    """Krum selects ``n - 2 f`` updates one by one; of each coordinate, the ``n - 4 f`` nearest the median are averaged.

    Needs n >= 4 f + 3.
    """

    f: int = 2  # adversaries to withstand

    def __post_init__(self) -> None:
        at_least(0, f=self.f)

    def withstands(self, updates: int) -> int:
        return (updates - 3) // 4

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, None]:
        n = len(updates)
        f = withstood(self.f, self.withstands(n))
        distances, left = squared_distances(updates), list(range(n))
        chosen = [left.pop(int(ranked(distances[left][:, left], f)[0])) for _ in range(n - 2 * f)]
        return by_columns(lambda block: near_median(block, n - 4 * f), updates[sorted(chosen)]), None


def ranked(distances: Tensor, f: int) -> Tensor:
    """Rank n updates, best first, by the sum of squared distances from the ``n - f - 2`` nearest others, at least one.

    If that is one, two mutual nearest neighbours tie: the one with the smaller sum of all distances comes first.
    """
    n = len(distances)
    others = distances.clone().fill_diagonal_(-1).sort(dim=1).values[:, 1:]
    order = others.sum(dim=1).argsort(stable=True)
    return order[others[order, : max(1, n - f - 2)].sum(dim=1).argsort(stable=True)]


def near_median(block: Tensor, count: int) -> Tensor:
    """Return, per column, the mean of the `count` values nearest its median; ties prefer the smaller value."""
    n = len(block)
    values = ordered(block).contiguous().double()
    median = values[(n - 1) // 2 : n // 2 + 1].mean(dim=0)
    nearest = (values - median).abs().argsort(dim=0, stable=True)[:count]
    return values.gather(0, nearest).mean(dim=0).to(block.dtype)
