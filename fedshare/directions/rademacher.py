"""Random sign directions: the same bits on every machine, thread count and device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedshare.directions import perturb
from fedshare.directions.message import Entry, Origin


class Rademacher:
    name = "philox4x32-10/rademacher/1"
    bits = 0
    largest = 1

    def draw(self, origin: Origin, count: int, device: torch.device) -> Tensor:
        return perturb.draw(origin, count, device)

    def displace(self, vector: Tensor, drawn: Tensor, coefficients: Sequence[float]) -> None:
        perturb.displace(vector, drawn, coefficients)

    def accumulate(self, into: Tensor, entries: Sequence[Entry], start: int, size: int) -> None:
        perturb.accumulate(into, entries, start)
