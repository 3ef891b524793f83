"""Averages over many sets of models at once, each restricted to a mask."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedshare.forms.masks import ones, unpack
from fedshare.machine.threads import spread
from fedshare.tensors import Tensors

_WIDTH = 2**12  # coordinates per block: those of a hundred models fit into the cache
_DENSE = 0.4  # share of all pairs; above it, a matrix product is faster than sparse sums
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


def mix(models: Sequence[Tensors], sets: Tensor, masks: Sequence[Tensors]) -> list[Tensor]:
    """Return, for each row of `sets`, ``[rows, models]`` of bool, the unweighted mean of its models within its mask.

    `masks`, one per row, hold packed bits (`fedshare.forms.masks`) by the names of the models' tensors. The result has
    one vector per row: its coordinates in the order of the names. The mean of a single model equals that model to the
    bit.

    All coordinates of a block are averaged before the masked ones are selected: selecting first costs more than it
    saves.
    """
    if not models[0]:
        return [torch.empty(0) for _ in masks]
    kind = next(iter(models[0].values())).dtype
    average = _Average(sets, kind)
    kept = [torch.empty(sum(map(ones, mask.values())), dtype=kind) for mask in masks]
    targets = [_numbers(vector) for vector in kept]
    filled = np.zeros(len(kept), dtype=np.int64)
    for name, tensor in models[0].items():
        if tensor.numel():
            bits = torch.stack([mask[name] for mask in masks])
            filled = _mix([_numbers(model[name]) for model in models], average, bits, targets, filled)
    return kept


def _numbers(tensor: Tensor) -> np.ndarray:
    """View a tensor's bits as a vector of integers: numpy has no bfloat16, but slices ten times faster than torch."""
    return tensor.reshape(-1).view(_INTEGERS[tensor.element_size()]).numpy()


def _mix(
    models: Sequence[np.ndarray], average: "_Average", bits: Tensor, targets: Sequence[np.ndarray], filled: np.ndarray
) -> np.ndarray:
    """Mix one tensor of all models; `filled` is how much of each target is filled before; returns the same after."""
    size = len(models[0])
    starts = range(0, size, _WIDTH)
    counts = np.add.reduceat(np.bitwise_count(bits.numpy()), [s // 8 for s in starts], axis=1, dtype=np.int64)
    ends = filled[:, None] + counts.cumsum(axis=1)

    def fill(number: int) -> None:
        start, end = starts[number], min(starts[number] + _WIDTH, size)
        block = np.empty((len(models), end - start), dtype=models[0].dtype)
        for row, model in zip(block, models, strict=True):
            row[:] = model[start:end]
        means = _numbers(average(torch.from_numpy(block)))
        chosen = unpack(bits[:, start // 8 : (end + 7) // 8], end - start)
        values = means.take(np.flatnonzero(chosen.numpy()))
        first = 0
        for target, stop, count in zip(targets, ends[:, number].tolist(), counts[:, number].tolist(), strict=True):
            target[stop - count : stop] = values[first : first + count]
            first += count

    spread(fill, range(len(starts)))
    last: np.ndarray = ends[:, -1]
    return last


class _Average:
    """Averages over each of many sets of rows, ``[models, width]`` to ``[sets, width]``."""

    def __init__(self, sets: Tensor, kind: torch.dtype) -> None:
        members = sets.sum(dim=1, keepdim=True)
        self.kind, self.sizes = kind, members.to(kind)
        self.weights = sets.to(kind)
        self.listed, self.starts = sets.nonzero()[:, 1].contiguous(), (members.cumsum(0) - members).flatten()
        self.dense = len(self.listed) > _DENSE * sets.numel()
        single = (members.flatten() == 1).nonzero().flatten()
        self.single = (single, sets[single].int().argmax(dim=1))

    def __call__(self, block: Tensor) -> Tensor:
        block = block.view(self.kind)
        sums = self.weights @ block if self.dense else F.embedding_bag(self.listed, block, self.starts, mode="sum")
        means = sums.div_(self.sizes)
        rows, models = self.single
        means[rows] = block[models]  # otherwise a sum would turn -0 into 0
        return means


def overlay(onto: Tensors, values: Tensor, mask: Tensors) -> Tensors:
    """Return a copy of `onto` with its coordinates in `mask` replaced by `values`, as returned by `mix`."""
    mixed, start = {}, 0
    for name, tensor in onto.items():
        places = unpack(mask[name], tensor.numel()).view(tensor.shape)
        end = start + ones(mask[name])
        mixed[name] = tensor.masked_scatter(places, values[start:end])
        start = end
    return mixed
