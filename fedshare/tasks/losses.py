"""The losses of a batch, example by example, and what a user's own function may give in their place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """Of each example of a batch the sum of its losses and what that is to be divided by, both ``[batch]``.

    A batch's loss is ``sums.sum() / weights.sum()``, so that batches of any size, masked targets and class weights
    average exactly; a batch of which nothing counts has loss and gradient 0.
    """

    sums: Tensor
    weights: Tensor

    def mean(self) -> Tensor:
        weight = self.weights.sum()
        return self.sums.sum() / torch.where(weight > 0, weight, 1)


Loss = Callable[[Tensor, Tensor], Any]  # outputs and targets of a batch -> its mean loss, one an example, or `Losses`


def known_empty(counts: Tensor) -> bool:
    """Whether no target of the batch counts; under `vmap`, where nobody can tell, no."""
    try:
        return not bool(counts.any())
    except RuntimeError:
        return False
