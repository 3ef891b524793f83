"""A client's examples: tensors in memory, or read on demand."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from operator import itemgetter
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedshare import seeds, tensors
from fedshare.errors import UserError

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]  # one model input, several by position, or several by name
Shape = tuple[int, ...] | list[tuple[int, ...]] | dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Examples:
    """Inputs and targets in memory, row by row; numpy arrays become tensors.

    `x` is ``[n, ...]``: images ``[n, channels, height, width]``, int64 tokens ``[n, length]`` or float32 features; or a
    tuple or dict of several inputs, passed to the model as arguments. `y` is what the task expects: classes ``[n]``,
    a target for each position ``[n, ...]``, or numbers ``[n, outputs]``. `mean` and `std`, one number per channel, are
    for images: a batch is ``(x - mean) / std``, or ``(x / 255 - mean) / std`` for uint8.
    """

    in_memory: ClassVar[bool] = True  # otherwise batches of x and y are read on demand

    x: Inputs
    y: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", mapped(as_input, self.x))
        object.__setattr__(self, "y", as_tensor(self.y))
        for part in parts(self.x):
            if len(part) != len(self.y):
                raise UserError(
                    f"data: x has {len(part)} rows of {_kind(part)}, and y {len(self.y)} of {_kind(self.y)}"
                )

    def __len__(self) -> int:
        return self.y.shape[0]

    @property
    def single(self) -> Tensor:
        """The only input. Raises UserError if there are several."""
        if not isinstance(self.x, Tensor):
            raise UserError(f"data: the examples have {len(parts(self.x))} inputs, and one is required here")
        return self.x

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each example, int64 ``[n]``; None if an example has no single class."""
        single = self.y.ndim == 1 and not self.y.is_floating_point()
        return self.y.to(torch.int64).numpy() if single else None

    def subset(self, indices: np.ndarray | Tensor) -> "Examples":
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Examples(mapped(lambda x: x[rows], self.x), self.y[rows], self.mean, self.std)

    def batch(self, rows: Tensor | slice) -> tuple[Inputs, Tensor]:
        """Return the model inputs and the targets of these rows."""
        return normalised(mapped(itemgetter(rows), self.x), self.mean, self.std), self.y[rows]

    def to(self, device: torch.device | str) -> "Examples":
        """Return them on `device`, without a copy if they are there."""
        if self.y.device == torch.device(device):  # inputs and targets move together
            return self
        return Examples(mapped(lambda x: x.to(device), self.x), self.y.to(device), self.mean, self.std)

    def retyped(self, kind: torch.dtype) -> "Examples":
        """Return a copy whose targets have this type."""
        return replace(self, y=self.y.to(kind))

    def digest(self) -> str:
        """Return the SHA-256, in hex, of all inputs and targets."""
        leaves = [tensors.digest(part) for part in (*parts(self.x), self.y)]
        return hashlib.sha256(repr((leaves, self.mean, self.std)).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A published data set: one pool of examples, the training part first.

    A partition returns indices into this pool, because some conventions (PFLlib's) mix training and test examples.
    `owner`, int64 ``[n]``, is the source of each example if the data name it (the speaker of a line). `classes` is the
    number of a model's outputs: classes, labels or regression outputs.
    """

    name: str
    pool: Examples
    train_size: int
    classes: int
    owner: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.pool):
            raise UserError(f"data: {self.name}: has no example")
        if not 1 <= self.train_size <= len(self.pool):
            raise UserError(
                f"data: {self.name}: train_size is {self.train_size}, and there are {len(self.pool)} examples in all; "
                f"allowed is 1 to {len(self.pool)}"
            )
        if self.owner is not None and len(self.owner) != len(self.pool):
            raise UserError(f"data: {self.name}: {len(self.owner)} owners of {len(self.pool)} examples")

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The class of each example, int64 ``[n]``; None if any example has no class, or several."""
        labels = self.pool.labels
        return labels if labels is not None and labels.min() >= 0 and labels.max() < self.classes else None

    def retyped(self, kind: torch.dtype) -> "Dataset":
        """Return a copy whose targets have this type."""
        return replace(self, pool=self.pool.retyped(kind))

    def scarce(self, count: int, seed: int) -> "Dataset":
        """Return a copy with only `count` training examples, drawn regardless of class. Raises UserError."""
        if not 1 <= count <= self.train_size:
            raise UserError(f"train_examples={count}: {self.name} has {self.train_size}; allowed is 1 to that")
        drawn = torch.randperm(self.train_size, generator=seeds.generator(seed, "scarce"))[:count].sort().values
        rows = torch.cat([drawn, torch.arange(self.train_size, len(self.pool))])
        owner = None if self.owner is None else self.owner[rows.numpy()]
        return Dataset(self.name, self.pool.subset(rows), count, self.classes, owner)

    @property
    def shape(self) -> Shape:
        """The shape of one input; if there are several inputs, a list or dict of their shapes."""
        inputs, _ = self.pool.batch(slice(0, 1))
        return shape_of(inputs)


def normalised(x: Inputs, mean: tuple[float, ...], std: tuple[float, ...]) -> Inputs:
    """Return a batch of images normalised for a model; without `mean`, or with several inputs, the batch unchanged."""
    if not (mean or std) or not isinstance(x, Tensor):
        return x
    fits = len(mean) == len(std) and x.ndim > 1 and len(mean) in (1, x.shape[1])
    if not fits or not all(0 < one < inf for one in std):
        raise UserError(
            f"data: mean={list(mean)} and std={list(std)} of inputs of shape {list(x.shape[1:])}: must be one number "
            "a channel each, or one for all of them, and std above 0"
        )
    shape, most = (1, -1, *[1] * (x.ndim - 2)), 255 if x.dtype == torch.uint8 else 1
    scale = torch.tensor(std, device=x.device).reshape(shape) * most
    shift = torch.tensor(mean, device=x.device).reshape(shape) * most
    return (x.to(torch.float32) - shift) / scale


def shape_of(inputs: Inputs) -> Shape:
    """Return the shapes of one row of a batch's inputs."""
    if isinstance(inputs, Mapping):
        return {name: tuple(part.shape[1:]) for name, part in inputs.items()}
    return [tuple(part.shape[1:]) for part in inputs] if isinstance(inputs, tuple) else tuple(inputs.shape[1:])


def mapped(change: Callable[[Any], Tensor], inputs: Inputs) -> Inputs:
    """Apply `change` to each tensor of the inputs."""
    if isinstance(inputs, Mapping):
        return {str(name): change(part) for name, part in inputs.items()}
    return tuple(change(part) for part in inputs) if isinstance(inputs, tuple) else change(inputs)


def parts(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of the inputs, in order."""
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


def dtypes(examples: Examples) -> list[str]:
    """Return the types of the model's inputs, as torch names them."""
    inputs, _ = examples.batch(slice(0, 1))
    return [str(part.dtype).removeprefix("torch.") for part in parts(inputs)]


def as_input(value: Any) -> Tensor:
    """Return `value` as a tensor; float64, numpy's default for numbers, becomes float32."""
    return value if isinstance(value, Tensor) else as_tensor(value, {np.dtype(np.float64): np.dtype(np.float32)})


def as_tensor(value: Any, instead: Mapping[Any, Any] = MappingProxyType({})) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        # torch accepts neither read-only memory nor a foreign byte order.
        kind = array.dtype.newbyteorder("=")
        return torch.from_numpy(np.require(array, instead.get(kind, kind), ["C", "W"]))
    except (TypeError, ValueError):
        named = getattr(value, "dtype", type(value).__name__)
        raise UserError(f"data: {named} cannot be made a tensor; x and y must be arrays of numbers") from None


def _kind(part: Tensor) -> str:
    return f"{str(part.dtype).removeprefix('torch.')} {list(part.shape[1:])}"


class Share(Protocol):
    """A client's data. `validation`, held out of its training part, guides decisions; `test` is only reported."""

    @property
    def train(self) -> Examples: ...
    @property
    def test(self) -> Examples: ...
    @property
    def validation(self) -> Examples | None: ...
