"""Vector operations on updates, however many tensors they have. Sums are in float64."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedshare.tensors import Tensors, norm


def rms(a: Tensors) -> float:
    """Return the root mean square of all elements; 0 if there are none."""
    return norm(a) / math.sqrt(max(sum(tensor.numel() for tensor in a.values()), 1))


def deviation(items: Sequence[Tensors]) -> Tensors:
    """Return the sample standard deviation of each element (by ``n - 1``); 0 for a single item."""
    first = items[0]
    if len(items) == 1:
        return {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    return {name: torch.stack([item[name] for item in items]).std(0, correction=1) for name in first}


def normal(like: Tensors, std: float, generator: torch.Generator) -> Tensors:
    return _drawn(like, lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype) * std)


def uniform(like: Tensors, generator: torch.Generator) -> Tensors:
    """Return uniform random numbers from 0 to 1, shaped like `like`."""
    return _drawn(like, lambda t: torch.rand(t.shape, generator=generator, dtype=t.dtype))


def _drawn(like: Tensors, draw: Callable[[Tensor], Tensor]) -> Tensors:
    return {name: draw(tensor) for name, tensor in like.items()}
