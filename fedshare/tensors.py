"""Arithmetic on named tensors, so that a strategy's lines read as its paper's formulas."""

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
_HUGE = 1e300
_JOINED = 2**15  # numbers of small tensors that are looked at in one call
_SMALL = 2**13  # smaller tensors are joined: a call of torch takes longer than to copy them


def add(a: Tensors, b: Tensors, alpha: float = 1.0) -> Tensors:
    """Return ``a + alpha * b``, name by name."""
    _same_names(a, b)
    return {name: torch.add(a[name], b[name], alpha=alpha) for name in a}


def subtract(a: Tensors, b: Tensors) -> Tensors:
    """Return ``a - b``, name by name."""
    _same_names(a, b)
    return {name: a[name] - b[name] for name in a}


def scale(a: Tensors, factor: float) -> Tensors:
    return {name: a[name] * factor for name in a}


def zeros_like(a: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in a.items()}


def mean(items: Sequence[Tensors], weights: Sequence[float] | None = None) -> Tensors:
    """Return the average of `items`, weighted by `weights` (equal by default), summed in the order given.

    The order affects the result's last bits: pass items in client order.
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


def parameters(tensors: Tensors) -> Tensors:
    """Return the model's parameters among `tensors`, given as to a strategy's `init`; the rest are buffers."""
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}


def flatten(tensors: Tensors) -> Tensor:
    """Return all tensors as one vector, in order."""
    pieces = [tensor.detach().reshape(-1) for tensor in tensors.values()]
    return torch.cat(pieces) if pieces else torch.empty(0)


def dot(a: Tensors, b: Tensors) -> float:
    """Return the inner product over all tensors, in float64."""
    return sum(float(torch.dot(_precise(a[name]), _precise(b[name]))) for name in a)


def norm(a: Tensors) -> float:
    return math.sqrt(sum(_square(_precise(tensor)) for tensor in a.values()))


def cosine(a: Tensors, b: Tensors) -> float:
    """Return the cosine similarity, in float64; 0 if one of them is zero."""
    return cosines([a], b)[0]


def cosines(items: Sequence[Tensors], b: Tensors) -> list[float]:
    """Return the cosine similarity of each of `items` with `b`, in float64; 0 if one of the two is zero."""
    towards = {name: _precise(tensor) for name, tensor in b.items()}
    square, found = sum(map(_square, towards.values())), list[float]()
    for item in items:
        squares, products = list[float](), list[float]()
        for name, tensor in item.items():
            vector = _precise(tensor)
            squares.append(_square(vector))
            products.append(float(torch.dot(vector, towards[name])))
        length = math.sqrt(sum(squares) * square)
        found.append(sum(products) / length if length > 0 else 0.0)
    return found


def _precise(tensor: Tensor) -> Tensor:
    return tensor.double().reshape(-1)


def _square(vector: Tensor) -> float:
    return float(torch.dot(vector, vector))


def is_finite(value: object) -> bool:
    """Return whether it is a finite number, small enough that sums of many such numbers are finite, too."""
    return isinstance(value, float | int) and -_HUGE < value < _HUGE  # excludes ints too large for a float


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether none of them holds NaN or infinity."""
    joined = dict[torch.dtype, list[Tensor]]()
    count = 0
    for tensor in tensors:
        if (size := tensor.numel()) >= _SMALL:
            if not _finite(tensor):
                return False
        elif size:
            joined.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
            count += size
        if count >= _JOINED:
            if not all(map(_finite, map(_cat, joined.values()))):
                return False
            joined, count = {}, 0
    return all(map(_finite, map(_cat, joined.values())))


def _cat(pieces: list[Tensor]) -> Tensor:
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point():  # one pass without a copy: both ends are NaN if any element is
        return all(math.isfinite(float(end)) for end in tensor.detach().aminmax())
    return not tensor.is_complex() or bool(tensor.isfinite().all())


def digest(tensor: Tensor) -> str:
    """Return the SHA-256, in hex, of a tensor's type, shape and bits."""
    whole = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    if tensor.numel():  # an empty tensor made from a numpy array has a stride of 0, and no view of another type
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def fingerprint(tensors: Tensors) -> str:
    """Return the SHA-256, in hex, of named tensors, independent of their order."""
    leaves = [(name, digest(tensor)) for name, tensor in sorted(tensors.items())]
    return hashlib.sha256(repr(leaves).encode()).hexdigest()


def _same_names(a: Tensors, b: Tensors) -> None:
    if a.keys() != b.keys():
        raise KeyError(f"tensors differ in names: {sorted(a.keys() ^ b.keys())}")
