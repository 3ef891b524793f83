"""The examples of each client: in memory, or cut out of a data set on demand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fedshare.client import Share
from fedshare.data.dataset import Dataset, Examples
from fedshare.data.partition.base import Partition, Split
from fedshare.data.partition.deal import shuffled
from fedshare.seeds import numpy_generator


class Sized(Share, Protocol):
    @property
    def size(self) -> int:
        """The number of training examples."""
        ...

    @property
    def tests(self) -> int:
        """The number of test examples, if known."""
        ...

    @property
    def validations(self) -> int:
        """The number of validation examples, if known."""
        ...


class Part(NamedTuple):
    """Examples in memory."""

    train: Examples
    test: Examples

    @property
    def validation(self) -> None:
        """None: nothing is held out."""

    @property
    def size(self) -> int:
        return len(self.train)

    @property
    def tests(self) -> int:
        return len(self.test)

    @property
    def validations(self) -> int:
        return 0


def held_out(count: int, share: float) -> int:
    """Return how many of `count` training examples to hold out for validation; at least one is left for training."""
    return min(round(share * count), count - 1)


def validating(rows: np.ndarray, share: float, client: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a client's training and validation rows, drawn by its id and the seed; both sorted."""
    count = held_out(len(rows), share)
    if not count:
        return rows, rows[:0]
    order = shuffled(len(rows), numpy_generator(seed, "validation", client))
    return rows[np.sort(order[count:])], rows[np.sort(order[:count])]


@dataclass(frozen=True)
class Cut:
    """A client's part of a partition, cut out on demand: ten thousand of them take no memory."""

    client: int
    parts: "Partitioned"

    @property
    def size(self) -> int:
        count = len(self.parts.split.train[self.client])
        return count - held_out(count, self.parts.validation)

    @property
    def tests(self) -> int:
        return len(self.parts.split.test[self.client])

    @property
    def validations(self) -> int:
        return held_out(len(self.parts.split.train[self.client]), self.parts.validation)

    @property
    def train(self) -> Examples:
        return self._view(self._divided[0])

    @property
    def validation(self) -> Examples | None:
        held_out = self._divided[1]
        return self._view(held_out) if self.parts.validation else None

    @property
    def test(self) -> Examples:
        return self._view(self.parts.split.test[self.client])

    @property
    def _divided(self) -> tuple[np.ndarray, np.ndarray]:
        rows = self.parts.split.train[self.client]
        return validating(rows, self.parts.validation, self.client, self.parts.seed)

    def _view(self, indices: np.ndarray) -> Examples:
        examples = self.parts.dataset.pool.subset(indices)
        return self.parts.partition.view(self.client, examples, self.parts.seed)


class Partitioned(Sequence[Cut]):
    """A data set and its division. The share `validation` of each client's training part is held out."""

    def __init__(self, dataset: Dataset, partition: Partition, seed: int, validation: float = 0.0) -> None:
        self.dataset, self.partition, self.seed, self.validation = dataset, partition, seed, validation
        self.split: Split = partition.split(dataset, seed)

    def __len__(self) -> int:
        return len(self.split.train)

    def __getitem__(self, client: int) -> Cut:  # type: ignore[override]  # a slice of clients is not needed
        if not 0 <= client < len(self):
            raise IndexError(client)
        return Cut(client, self)


Shares = Sequence[Sized]  # by client id
