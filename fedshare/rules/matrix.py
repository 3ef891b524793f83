"""Updates as one matrix with a row per client, and sums over it: in float64, blockwise by columns, on all cores.

Results are the same bits on any number of cores, and need extra memory for a few columns only.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedshare.machine.threads import spread
from fedshare.tensors import Tensors

_WIDTH = 2**13  # columns per block: those of a hundred clients fit into the cache


def updates_of(models: Sequence[Tensors], params: Tensors) -> Tensor:
    """Return each model minus `params`, ``[models, d]``: floating-point tensors only, in the order of `params`."""
    floats = _floats(params)
    start = _joined(params, floats)
    rows = start.new_empty(len(models), len(start))
    for row, model in zip(rows.unbind(), models, strict=True):
        torch.sub(_joined(model, floats), start, out=row)
    return rows


def _joined(model: Tensors, names: list[str]) -> Tensor:
    pieces = [model[name].detach().reshape(-1).to(torch.float32) for name in names]
    return torch.cat(pieces) if pieces else torch.empty(0)


def moved(params: Tensors, update: Tensor) -> Tensors:
    """Return `params` plus a vector as returned by `updates_of`; other than floating-point tensors stay unchanged."""
    floats = _floats(params)
    pieces = dict(zip(floats, update.split([params[name].numel() for name in floats]), strict=True))
    return {
        name: (tensor + pieces[name].view(tensor.shape)).to(tensor.dtype) if name in pieces else tensor
        for name, tensor in params.items()
    }


def _floats(params: Tensors) -> list[str]:
    return [name for name, tensor in params.items() if tensor.is_floating_point()]


def by_columns(work: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """Apply `work` to each block of columns and concatenate the results."""
    return torch.cat(spread(work, matrix.split(_WIDTH, dim=-1)), dim=-1)


def ordered(block: Tensor) -> Tensor:
    """Return the block with each column sorted."""
    columns = block.T.clone(memory_format=torch.contiguous_format).numpy()
    columns.sort(axis=-1)  # several times faster than torch, which keeps track of places
    return torch.from_numpy(columns).T


def weighted(matrix: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the rows by `weights`, ``[rows]``, or one such sum for each row of `weights`."""
    return by_columns(lambda block: (weights.double() @ block.double()).to(block.dtype), matrix)


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of the rows of `a` with those of `b`."""
    return _sum(lambda a, b: a.double() @ b.double().T, a, b)


def lengths(matrix: Tensor, point: Tensor) -> Tensor:
    """Return the distance of each row from `point`."""
    return _sum(lambda rows, point: (rows.double() - point.double()).square().sum(dim=1), matrix, point).sqrt()


def squared_distances(matrix: Tensor) -> Tensor:
    """Return those between all rows, ``[rows, rows]``, from differences, because inner products would cancel."""
    pairs = _sum(lambda block: F.pdist(block.double()).square(), matrix)
    upper = matrix.new_zeros(len(matrix), len(matrix), dtype=torch.float64)
    upper[tuple(torch.triu_indices(len(matrix), len(matrix), offset=1))] = pairs
    return upper + upper.T


def _sum(work: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """Sum the results of `work` on the blocks, in the order of the columns."""
    blocks = zip(*(matrix.split(_WIDTH, dim=-1) for matrix in matrices), strict=True)
    return torch.stack(spread(lambda block: work(*block), blocks)).sum(dim=0)
