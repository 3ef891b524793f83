"""The losses of a batch, example by example, and the return types of a user's own loss function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """Each example's sum of losses and its divisor, both ``[batch]``.

    A batch's loss is ``sums.sum() / weights.sum()``, so that batches of any size, masked targets and class weights
    average exactly; a batch in which no target counts has loss and gradient 0.
    """

    sums: Tensor
    weights: Tensor

    def mean(self) -> Tensor:
        weight = self.weights.sum()
        return self.sums.sum() / torch.where(weight > 0, weight, 1)


Loss = Callable[[Tensor, Tensor], Any]  # outputs, targets -> the mean loss, one per example, or `Losses`


def known_empty(counts: Tensor) -> bool:
    """Return whether no target of the batch counts; False under `vmap`, where the values are not known."""
    try:
        return not bool(counts.any())
    except RuntimeError:
        return False
