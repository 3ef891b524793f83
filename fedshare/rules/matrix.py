"""Updates as one matrix, a row a client, and sums over it: in float64, some columns at a time, on all cores.

Everything here gives the same bits on any number of cores, and needs no more than a few columns' memory beside.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedshare.machine.threads import spread
from fedshare.tensors import Tensors

_WIDTH = 2**13  # columns at a time: those of a hundred clients stay in the cache


def updates_of(models: Sequence[Tensors], params: Tensors) -> Tensor:
    """From `params` to each of `models`, ``[models, d]``, of what is floating point, in the order of `params`."""
    floats = _floats(params)
    rows = torch.empty(len(models), sum(params[name].numel() for name in floats))
    for row, model in zip(rows, models, strict=True):
        start = 0
        for name in floats:
            end = start + params[name].numel()
            row[start:end] = (model[name].to(torch.float32) - params[name].to(torch.float32)).reshape(-1)
            start = end
    return rows


def moved(params: Tensors, update: Tensor) -> Tensors:
    """`params` plus a vector such as `updates_of` has; what is no floating point stays as it is."""
    floats = _floats(params)
    pieces = dict(zip(floats, update.split([params[name].numel() for name in floats]), strict=True))
    return {
        name: (tensor + pieces[name].view(tensor.shape)).to(tensor.dtype) if name in pieces else tensor
        for name, tensor in params.items()
    }


def _floats(params: Tensors) -> list[str]:
    return [name for name, tensor in params.items() if tensor.is_floating_point()]


def by_columns(work: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """What `work` makes of each block of columns, side by side."""
    return torch.cat(spread(work, matrix.split(_WIDTH, dim=-1)), dim=-1)


def weighted(matrix: Tensor, weights: Tensor) -> Tensor:
    """The sum of the rows by `weights`, ``[rows]``, or one such sum for each row of `weights`."""
    return by_columns(lambda block: (weights.double() @ block.double()).to(block.dtype), matrix)


def products(a: Tensor, b: Tensor) -> Tensor:
    """The inner products of the rows of `a` with those of `b`."""
    return _sum(lambda a, b: a.double() @ b.double().T, a, b)


def lengths(matrix: Tensor, point: Tensor) -> Tensor:
    """The distance of each row from `point`."""
    return _sum(lambda rows, point: (rows.double() - point.double()).square().sum(dim=1), matrix, point).sqrt()


def squared_distances(matrix: Tensor) -> Tensor:
    """Between any two rows, ``[rows, rows]``: sums of squared differences, for a product would cancel."""
    pairs = _sum(lambda block: F.pdist(block.double()).square(), matrix)
    upper = matrix.new_zeros(len(matrix), len(matrix), dtype=torch.float64)
    upper[tuple(torch.triu_indices(len(matrix), len(matrix), offset=1))] = pairs
    return upper + upper.T


def _sum(work: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """The sum, in the order of the columns, of what `work` makes of each block of them."""
    blocks = zip(*(matrix.split(_WIDTH, dim=-1) for matrix in matrices), strict=True)
    return torch.stack(spread(lambda block: work(*block), blocks)).sum(dim=0)
