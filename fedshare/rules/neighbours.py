"""Mixing of updates before another rule, for clients with heterogeneous data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.rules.matrix import squared_distances, weighted
from fedshare.rules.rule import Rule, at_least, withstood


@dataclass(frozen=True)
class NearestNeighbourMixing:
    """Replace each update by the mean of its ``n - f`` nearest, itself included, then apply another rule; needs n > f.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML
    under Heterogeneity", AISTATS 2023, arXiv 2302.01772. The shares are those of the updates before the mixing.
    """

    then: Rule  # the rule applied to the mixed updates
    f: int = 2  # adversaries to withstand; the other rule has its own

    def __post_init__(self) -> None:
        at_least(0, f=self.f)

    def withstands(self, updates: int) -> int:
        """Return its limit: mixing works for any f < n, but most neighbours are honest only if most updates are."""
        return (updates - 1) // 2

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, Tensor | None]:
        n = len(updates)
        count = n - withstood(self.f, n - 1)
        nearest = squared_distances(updates).fill_diagonal_(-1).argsort(dim=1, stable=True)[:, :count]
        mixing = torch.zeros(n, n, dtype=torch.float64).scatter_(1, nearest, 1 / count)
        aggregate, shares = self.then(weighted(updates, mixing), centre)
        return aggregate, None if shares is None else shares @ mixing
