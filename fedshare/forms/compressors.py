"""Compressors: which part of a tensor a sender keeps. The form of the upload writes down only what is not zero."""

from dataclasses import dataclass
from typing import Protocol

import torch

from fedshare.errors import UserError
from fedshare.forms import masks
from fedshare.tensors import Tensors, flatten


class Compressor(Protocol):
    def compress(self, tensors: Tensors) -> Tensors:
        """Return an approximation of `tensors`, of the same names, shapes and types."""
        ...


@dataclass(frozen=True)
class Identity:
    """Everything is kept."""

    def compress(self, tensors: Tensors) -> Tensors:
        return tensors


@dataclass(frozen=True)
class TopK:
    """The numbers of the largest magnitudes among all tensors are kept, at least one; the others become 0."""

    fraction: float = 0.1  # of all numbers that is kept

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction={self.fraction}: must be above 0 and at most 1")

    def compress(self, tensors: Tensors) -> Tensors:
        sizes = flatten(tensors).abs()
        # NaN is kept, as the largest, so that a diverged model is noticed.
        sizes = torch.where(sizes.isnan(), torch.inf, sizes)
        kept = masks.top(sizes, max(1, masks.count(self.fraction, len(sizes))))
        pieces = kept.split([tensor.numel() for tensor in tensors.values()])
        return {
            name: torch.where(mask.view(tensor.shape), tensor, 0)
            for (name, tensor), mask in zip(tensors.items(), pieces, strict=True)
        }
