"""Any map-style torch Dataset as a data set, read lazily."""

from typing import Any, Literal

import numpy as np
import torch

from fedshare.data.dataset import Dataset
from fedshare.data.lazy import Lazy, labels_of
from fedshare.data.split import divided
from fedshare.errors import UserError


class Joined:
    """Several Datasets concatenated."""

    def __init__(self, *sources: Any) -> None:
        self.datasets = sources
        self._starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.datasets[which][index - int(self._starts[which])]


def torch_dataset(
    train: Any,
    test: Any = None,
    *,
    name: str = "torch",
    classes: int | None = None,
    labels: Literal["named", "read", "none"] = "named",
    cache: bool = False,
    mean: list[float] | tuple[float, ...] = (),
    std: list[float] | tuple[float, ...] = (),
    test_share: float = 0.2,
) -> Dataset:
    """Return the examples of two Datasets of (inputs, target) pairs; without `test`, a share of `train` is for test.

    Partitions by class need each example's class: with `labels` "named" the Datasets have ``targets`` or ``labels``;
    with "read" every item is read once. With `cache`, all items are read once, transformed, and kept in memory. `mean`
    and `std` are for images that no transform has normalised.
    """
    if train is None:
        raise UserError("data.load.train: is required: the _target_ of a torch Dataset, and its arguments")
    for key, source in (("train", train), ("test", test)):
        if source is not None and not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            kind = type(source).__name__
            raise UserError(f"data.load.{key}: a {kind} has no length and no items; must be a map-style torch Dataset")
    if labels not in ("named", "read", "none"):
        raise UserError(f"data.load.labels={labels}: must be named, read or none")
    source = train if test is None else Joined(train, test)
    if not len(train):
        raise UserError(f"data.load.train: {name} has no example")
    pool = Lazy(source, np.arange(len(source)), _classes(source, labels), tuple(mean), tuple(std))
    size = len(train)
    if test is None:
        kept, held_out = divided(pool.labels, len(pool), test_share, name)
        pool, size = pool.subset(np.concatenate([kept, held_out])), len(kept)
    if classes is None and pool.labels is not None:
        classes = int(pool.labels.max()) + 1
    if classes is None:
        raise UserError("data.classes: is required, for the Dataset names no classes")
    return Dataset(name, pool.cached() if cache else pool, size, classes)


def _classes(source: Any, how: str) -> np.ndarray | None:
    if how == "named":
        return labels_of(source)
    if how == "none":
        return None
    every = Lazy(source, np.arange(len(source)))
    found = [every.subset(np.array([row])).batch(slice(None))[1][0] for row in range(len(source))]
    if any(one.ndim or one.is_floating_point() for one in found):
        raise UserError("data.load.labels=read: a target is no class; none: there are no classes")
    return torch.stack(found).to(torch.int64).numpy()
