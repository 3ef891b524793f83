"""How a data set is divided among clients: training and test examples in one result."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fedshare.data.dataset import Dataset, Examples
from fedshare.errors import UserError


@dataclass(frozen=True)
class Split:
    """The examples of each client, as sorted int64 indices into `Dataset.pool`; the position is the client's id.

    Each client has a training example, and no example appears twice unless a convention says otherwise. A test part
    may be empty, when there are fewer test examples than clients, or an owner has none.
    """

    train: list[np.ndarray]
    test: list[np.ndarray]

    def __post_init__(self) -> None:
        empty = [client for client, indices in enumerate(self.train) if not len(indices)]
        if empty:
            raise UserError(f"partition: client {empty[0]} has no training example; ask for fewer clients")


@dataclass(frozen=True, kw_only=True)
class Partition(ABC):
    """Fields are the YAML keys. `split` is a pure function of the data set and the seed.

    The same seed and numpy version give the same split. Draws use only `Generator.random` and
    `Generator.standard_gamma`, whose streams numpy rarely changes; golden indices in the tests detect a change.
    """

    clients: int | None  # number of clients; null: as many as the data name

    def __post_init__(self) -> None:
        """Raise `UserError` if a field is invalid."""
        whole("clients", self.clients, 1)

    @abstractmethod
    def split(self, dataset: Dataset, seed: int) -> Split:
        """Return the division. Raise `UserError` if it is impossible."""

    def view(self, client: int, examples: Examples, seed: int) -> Examples:
        """Return the examples as this client sees them; only a feature skew changes them."""
        return examples


def table(split: Split, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the number of training examples of each class per client, int64 ``[clients, classes]``."""
    client = np.repeat(np.arange(len(split.train)), [len(indices) for indices in split.train])
    cell = client * classes + labels[np.concatenate(split.train)]
    return np.bincount(cell, minlength=len(split.train) * classes).reshape(-1, classes)


def left_out(split: Split, dataset: Dataset) -> str:
    """Return a line on the training examples that no client has; empty if there are none."""
    rows = np.setdiff1d(np.arange(dataset.train_size), np.concatenate(split.train))
    if not len(rows):
        return ""
    line = f"partition: {len(rows):,} of {dataset.train_size:,} training examples are given to nobody"
    if dataset.labels is None:
        return line
    labels = dataset.labels[: dataset.train_size]
    whole = np.setdiff1d(labels, labels[np.concatenate(split.train)])
    return f"{line}, and of these classes none: {', '.join(map(str, whole))}" if len(whole) else line


def counted_from_one(dataset: Dataset) -> str:
    """Return a line saying that no example has class 0; empty if one has, or classes have no numbers."""
    labels = dataset.labels
    if labels is None or not len(labels) or labels.min() == 0:
        return ""
    return f"data: no example is of class 0: labels are {labels.min()} to {labels.max()}, of {dataset.classes} classes"


def class_labels(dataset: Dataset) -> np.ndarray:
    """Return `Dataset.labels`. Raise `UserError` if there are none."""
    if dataset.labels is None:
        raise UserError(
            f"partition needs a class for each example; data={dataset.name} has none (use iid, quantity or natural)"
        )
    return dataset.labels


def enough(dataset: Dataset, available: int, clients: int, least: int = 1) -> None:
    if clients * least > available:
        raise UserError(
            f"partition: {clients} clients with at least {least} examples each need {clients * least}; "
            f"data={dataset.name} has {available}"
        )


def whole(name: str, value: object, low: int) -> None:
    if type(value) is not int or value < low:
        raise UserError(f"{name} must be a whole number >= {low}, not {value}")


def positive(name: str, value: object) -> None:
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise UserError(f"{name} must be > 0, not {value}")


def not_negative(name: str, value: object) -> None:
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise UserError(f"{name} must be >= 0, not {value}")
