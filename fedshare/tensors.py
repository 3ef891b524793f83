"""Arithmetic on named tensors, so that a strategy's lines read as its paper's formulas."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
_HUGE = 1e300


def add(a: Tensors, b: Tensors, alpha: float = 1.0) -> Tensors:
    """``a + alpha * b``, name by name."""
    _same_names(a, b)
    return {name: torch.add(a[name], b[name], alpha=alpha) for name in a}


def subtract(a: Tensors, b: Tensors) -> Tensors:
    """``a - b``, name by name."""
    _same_names(a, b)
    return {name: a[name] - b[name] for name in a}


def scale(a: Tensors, factor: float) -> Tensors:
    return {name: a[name] * factor for name in a}


def zeros_like(a: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in a.items()}


def mean(items: Sequence[Tensors], weights: Sequence[float] | None = None) -> Tensors:
    """The average of `items`, weighted by `weights` (equal by default), summed in the order given.

    The order is part of the result's last bits: give items in client order.
    """
    if not items:
        raise ValueError("the mean of nothing")
    weights = [1.0] * len(items) if weights is None else weights
    if len(weights) != len(items):
        raise ValueError(f"{len(items)} items but {len(weights)} weights")
    whole = sum(weights)
    total = scale(items[0], weights[0] / whole)
    for item, weight in zip(items[1:], weights[1:], strict=True):
        _same_names(total, item)
        for name, tensor in total.items():
            tensor.add_(item[name], alpha=weight / whole)
    return total


def is_finite(value: object) -> bool:
    """Whether it is a number that can be computed with: sums of many such numbers are finite, too."""
    return isinstance(value, float | int) and -_HUGE < value < _HUGE  # of ints, those beyond the floats are not


def all_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity."""
    if tensor.is_floating_point() and tensor.numel():  # in one pass and without a copy: both ends are NaN where any is
        return all(math.isfinite(float(end)) for end in tensor.detach().aminmax())
    return bool(tensor.isfinite().all())


def digest(tensor: Tensor) -> str:
    """SHA-256, in hex, of a tensor's type, shape and bits."""
    whole = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def fingerprint(tensors: Tensors) -> str:
    """SHA-256, in hex, of named tensors, in whatever order they come."""
    leaves = [(name, digest(tensor)) for name, tensor in sorted(tensors.items())]
    return hashlib.sha256(repr(leaves).encode()).hexdigest()


def _same_names(a: Tensors, b: Tensors) -> None:
    if a.keys() != b.keys():
        raise KeyError(f"tensors differ in names: {sorted(a.keys() ^ b.keys())}")
