"""Target conversion: unambiguous targets are converted, others rejected with a line that describes them."""

from collections.abc import Collection

import torch
from torch import Tensor

from fedshare.data.dataset import Dataset
from fedshare.errors import UserError


def classes(dataset: Dataset, ignored: Collection[int]) -> Dataset:
    """Convert integers of any type, and bool, to int64. Raises UserError unless 0 to classes - 1, or `ignored`."""
    most = dataset.classes - 1
    others = " or ".join(map(str, sorted(ignored)))
    due = f"must be integers (bool, int8 to int64) from 0 to {most}, or {others} for a target that does not count"
    if dataset.pool.in_memory:
        y = dataset.pool.y
    elif (named := dataset.pool.labels) is not None:  # converted when the batches are read
        y = torch.as_tensor(named)
    else:
        return dataset.retyped(torch.int64)
    if y.is_floating_point() or y.is_complex():
        several = y.ndim == 2 and ((y == 0) | (y == 1)).all()
        hint = "; task=multilabel takes 0 or 1 for each of several labels" if several else ""
        raise UserError(f"{_described(dataset, y)}; {due}{hint}")
    whole = y.to(torch.int64)
    wrong = (whole < 0) | (whole > most)
    for number in ignored:
        wrong &= whole != number
    if wrong.any():
        raise UserError(f"{_described(dataset, whole)}; {due}")
    if ((whole < 0) | (whole > most)).all():
        raise UserError(f"data: no target of {dataset.name} counts: each is {others}")
    return dataset.retyped(torch.int64)


def placed(dataset: Dataset, place: str, dimensions: Collection[int]) -> Dataset:
    """Return the data set unchanged. Raises UserError if an example lacks a target for each `place`."""
    if dataset.pool.in_memory and (y := dataset.pool.y).ndim not in dimensions:
        raise UserError(f"{_described(dataset, y)}; this task needs a target for each {place}: [{len(y)}, ...]")
    return dataset


def labels(dataset: Dataset, ignored: int) -> Dataset:
    """Convert 0 and 1 of any type to int8. Raises UserError unless each example has one for each label."""
    if not dataset.pool.in_memory:
        return dataset.retyped(torch.int8)
    y = dataset.pool.y
    due = f"must be 0, 1, or {ignored} for a label that does not count, of shape [{len(y)}, {dataset.classes}]"
    if y.ndim != 2 or y.shape[1] != dataset.classes or not ((y == 0) | (y == 1) | (y == ignored)).all():
        raise UserError(f"{_described(dataset, y)}; {due}")
    return dataset.retyped(torch.int8)


def numbers(dataset: Dataset) -> Dataset:
    """Convert integers to float64. Raises UserError if one is not finite, or an example has too few or too many."""
    if not dataset.pool.in_memory:
        return dataset
    y = dataset.pool.y
    shapes = [f"[{len(y)}]"] * (dataset.classes == 1) + [f"[{len(y)}, {dataset.classes}]"]
    fits = y.ndim == 1 if dataset.classes == 1 and y.ndim < 2 else y.ndim == 2 and y.shape[1] == dataset.classes
    if y.is_complex() or not fits or not y.isfinite().all():
        raise UserError(f"{_described(dataset, y)}; must be finite numbers of shape {' or '.join(shapes)}")
    return dataset if y.is_floating_point() else dataset.retyped(torch.float64)


def _described(dataset: Dataset, y: Tensor) -> str:
    kind = str(y.dtype).removeprefix("torch.")
    if not y.numel():
        return f"data: {dataset.name}'s y is {kind} of shape {list(y.shape)}"
    low, high = ("nan", "nan") if y.is_complex() or y.isnan().any() else (f"{y.min():g}", f"{y.max():g}")
    return f"data: {dataset.name}'s y is {kind} from {low} to {high}, of shape {list(y.shape)}"
