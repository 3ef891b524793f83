"""What a client learns from: examples in memory, as tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedshare import seeds
from fedshare.errors import UserError


@dataclass(frozen=True)
class Examples:
    """Inputs and targets, row by row.

    `x` is ``[n, ...]``: uint8 images ``[n, channels, height, width]``, int64 tokens ``[n, length]``, float32 features.
    `y` is int64: labels ``[n]``, or one target per position ``[n, length]`` (-100 is ignored by loss and accuracy).
    `mean` and `std`, one number a channel, belong to images: a batch is ``(x / 255 - mean) / std``.
    """

    x: Tensor
    y: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def subset(self, indices: np.ndarray | Tensor) -> "Examples":
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Examples(self.x[rows], self.y[rows], self.mean, self.std)

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs ready for a model, and their targets."""
        x = self.x[rows]
        if self.mean:
            shape = (1, -1, *[1] * (x.ndim - 2))
            scale = torch.tensor(self.std, device=x.device).reshape(shape) * 255
            shift = torch.tensor(self.mean, device=x.device).reshape(shape) * 255
            x = (x.to(torch.float32) - shift) / scale
        return x, self.y[rows]

    def to(self, device: torch.device | str) -> "Examples":
        return Examples(self.x.to(device), self.y.to(device), self.mean, self.std)


@dataclass(frozen=True)
class Dataset:
    """A data set as published: one pool of examples, the training part first.

    A partition answers with indices into this pool, because some conventions (PFLlib's) mix training and test examples.
    `owner`, int64 ``[n]``, is who an example comes from, where the data say so (the speaker of a line).
    """

    name: str
    pool: Examples
    train_size: int
    classes: int
    owner: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each example, int64 ``[n]``; None where an example has no single class (language modelling)."""
        return self.pool.y.numpy() if self.pool.y.ndim == 1 else None

    def scarce(self, count: int, seed: int) -> "Dataset":
        """With so many of the training examples only, drawn without regard to their classes. Raises UserError."""
        if not 1 <= count <= self.train_size:
            raise UserError(f"train_examples={count}: {self.name} has {self.train_size}; allowed is 1 to that")
        drawn = torch.randperm(self.train_size, generator=seeds.generator(seed, "scarce"))[:count].sort().values
        rows = torch.cat([drawn, torch.arange(self.train_size, len(self.pool))])
        owner = None if self.owner is None else self.owner[rows.numpy()]
        return Dataset(self.name, self.pool.subset(rows), count, self.classes, owner)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.pool.x.shape[1:])
