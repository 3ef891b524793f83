"""Examples that are read when a batch needs them, from any map-style torch Dataset with its transforms."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedshare import tensors
from fedshare.data.dataset import Examples, Inputs, as_input, as_tensor, mapped, normalised, parts
from fedshare.errors import UserError, first_line

Item = tuple[Any, Any]  # inputs and target
_NOT_HERE = "data: are read lazily, and required in memory here; data.load.cache=true keeps them there"


class Source(Protocol):
    """A map-style Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def pair(item: Any) -> Item:
    """Return the item of a Dataset that yields inputs and a target."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"an item is a {type(item).__name__}; must be a pair of inputs and a target")
    return item[0], item[1]


class Lazy(Examples):
    """The rows `rows` of `source`, of which at most a batch is in memory.

    `read` turns an item into inputs and target; numbers, arrays and images become tensors. `labels` are the classes of
    all items of the source, if known. Python's and numpy's generators are seeded from torch's, so random transforms
    draw the same numbers wherever a client trains.
    """

    in_memory: ClassVar[bool] = False
    _source: Source
    _rows: np.ndarray
    _labels: np.ndarray | None
    _read: Callable[[Any], Item]
    _kind: torch.dtype | None  # of the targets; None: unchanged
    _device: torch.device | str

    def __init__(
        self,
        source: Source,
        rows: np.ndarray,
        labels: np.ndarray | None = None,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        read: Callable[[Any], Item] = pair,
        kind: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        given = {"_source": source, "_rows": rows, "_labels": labels, "mean": tuple(mean), "std": tuple(std)}
        vars(self).update(given | {"_read": read, "_kind": kind, "_device": device})

    def _with(self, **changes: Any) -> "Lazy":
        own = vars(self)
        names = ("source", "rows", "labels", "read", "kind", "device")
        settings = {name: own[f"_{name}"] for name in names} | {"mean": self.mean, "std": self.std}
        return Lazy(**settings | changes)

    @property
    def x(self) -> Inputs:
        raise UserError(_NOT_HERE)

    @property
    def y(self) -> Tensor:
        raise UserError(_NOT_HERE)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> np.ndarray | None:
        labels: np.ndarray | None = self._labels
        return None if labels is None else labels[self._rows]

    def subset(self, indices: np.ndarray | Tensor) -> "Lazy":
        return self._with(rows=self._rows[np.asarray(indices, dtype=np.int64)])

    def to(self, device: torch.device | str) -> "Lazy":
        return self._with(device=device)

    def retyped(self, kind: torch.dtype) -> "Lazy":
        return self._with(kind=kind)

    def batch(self, rows: Tensor | slice) -> tuple[Inputs, Tensor]:
        chosen = self._rows[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        with _drawn_from_torch(chosen):
            x, y = self._stacked([int(row) for row in chosen])
        x = mapped(lambda part: part.to(self._device), x)
        return normalised(x, self.mean, self.std), y.to(self._device)

    def _stacked(self, rows: list[int]) -> tuple[Inputs, Tensor]:
        """Read the items one by one, each written directly to its place in the batch."""
        first = self._item(rows[0] if rows else int(self._rows[0]))
        inputs, targets = mapped(partial(_room, len(rows)), first[0]), _room(len(rows), first[1])
        places = [*parts(inputs), targets]
        for position, row in enumerate(rows):
            item = self._item(row) if position else first
            for place, part in zip(places, [*parts(item[0]), item[1]], strict=True):
                if part.shape != place.shape[1:]:
                    found, wanted = list(part.shape), list(place.shape[1:])
                    raise UserError(f"data: item {row} has shape {found}, others {wanted}: a transform must resize")
                place[position] = part
        return inputs, targets

    def _item(self, row: int) -> tuple[Inputs, Tensor]:
        try:
            x, y = self._read(self._source[row])
            target = as_tensor(picture(y))
            inputs = mapped(lambda part: as_input(channels(picture(part), part)), x)
        except UserError as error:
            raise UserError(f"data: item {row}: {first_line(error).removeprefix('data: ')}") from error
        return inputs, target if self._kind is None else target.to(self._kind)

    def cached(self) -> Examples:
        """Return all examples in memory, as they are read now."""
        plain = self._with(mean=(), std=())
        x, y = plain.batch(slice(None))
        return Examples(x, y, self.mean, self.std)

    def digest(self) -> str:
        whole = hashlib.sha256(repr((self.mean, self.std)).encode())
        for row in self._rows:
            x, y = self._item(int(row))
            for part in (*parts(x), y):
                whole.update(tensors.digest(part).encode())
        return whole.hexdigest()


def _room(count: int, part: Tensor) -> Tensor:
    return part.new_empty((count, *part.shape))


def channels(array: Any, given: Any) -> Any:
    """Add the channel axis that an image lacks if it has a single channel."""
    return array[None] if array is not given and array.ndim == 2 else array


def picture(value: Any) -> Any:
    """Return a PIL image as an array ``[channels, height, width]`` or ``[height, width]``; other values unchanged."""
    if not hasattr(value, "__array_interface__") or isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    return np.moveaxis(array, -1, 0) if array.ndim == 3 else array


@contextmanager
def _drawn_from_torch(rows: np.ndarray) -> Iterator[None]:
    """Seed Python's and numpy's generators, inside this context, from the rows and torch's, which is not advanced."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # what transforms use
    key = hashlib.sha256(torch.get_rng_state().numpy().tobytes() + rows.tobytes())
    random.seed(key.digest())
    np.random.seed(int.from_bytes(key.digest()[:4], "little"))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def labels_of(source: Any) -> np.ndarray | None:
    """Return the classes of a Dataset's items if it has ``targets`` or ``labels``; for a subset, its own items'."""
    if hasattr(source, "indices") and hasattr(source, "dataset"):
        whole = labels_of(source.dataset)
        return None if whole is None else whole[np.asarray(source.indices)]
    if hasattr(source, "datasets"):
        each = [labels_of(one) for one in source.datasets]
        return None if any(one is None for one in each) else np.concatenate([one for one in each if one is not None])
    for name in ("targets", "labels"):
        found = getattr(source, name, None)
        if found is not None and not callable(found) and not isinstance(found, Mapping) and len(found) == len(source):
            array = np.asarray(found)
            if array.ndim == 1 and array.dtype.kind in "iub":
                return array.astype(np.int64)
    return None
