"""The three splits of RFFL (Xu & Lyu 2020, arXiv 2011.10464): `faithful` to its released code, or corrected.

Faithful uses that code's own sample: Python's ``Random(1111)`` shuffles the training part, four fifths of it are kept
(the rest is its validation set), then at most ``clients * samples``. The seed is not used. Corrected, the order
depends on the seed, nothing is held out for validation, and no example is used twice.

Every client is tested on the whole test part: the paper correlates accuracies, which are comparable only on a common
test set.
"""

import random
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split, class_labels, enough, whole
from fedshare.data.partition.counts import apportion
from fedshare.data.partition.deal import matched, shuffled
from fedshare.errors import UserError
from fedshare.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Rffl(Partition):
    """The common part of the three splits."""

    clients: int
    samples: int | None = 600  # average number of training examples per client, if there are enough; null: all
    faithful: bool = True  # the released code's own sample; false: drawn by the seed, and corrected
    common_test: bool = True  # test every client on the whole test part; false: it is divided like the training part

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None:
            whole("samples", self.samples, 1)

    def split(self, dataset: Dataset, seed: int) -> Split:
        size, source = dataset.train_size, random.Random(1111)
        if self.faithful:
            order = list(range(size))
            source.shuffle(order)
            pool = np.array(order[: int(size * 0.8)])
        else:
            pool = shuffled(size, numpy_generator(seed, "partition"))
        enough(dataset, len(pool), self.clients)
        train = [np.sort(indices) for indices in self.share(dataset, pool, source)]
        if not self.common_test:
            return matched(dataset, train, seed)
        return Split(train, [np.arange(size, len(dataset.pool))] * self.clients)

    def cap(self, pool: np.ndarray) -> np.ndarray:
        return pool if self.samples is None else pool[: self.clients * self.samples]

    @abstractmethod
    def share(self, dataset: Dataset, pool: np.ndarray, source: random.Random) -> list[np.ndarray]:
        """Return the examples of each client from those in `pool`, which are in random order."""


@dataclass(frozen=True, kw_only=True)
class RfflUniform(Rffl):
    """`uniform`: equal parts."""

    def share(self, dataset: Dataset, pool: np.ndarray, source: random.Random) -> list[np.ndarray]:
        return np.array_split(self.cap(pool), self.clients)


@dataclass(frozen=True, kw_only=True)
class RfflPowerlaw(Rffl):
    """`powerlaw`: equal class frequencies, sizes proportional to quantiles of the density ``a * x ** (a - 1)``, 0 to 1.

    The released code rounds every size up, so its last and largest client is a few examples short.
    """

    exponent: float = 1.65911332899  # a; the smaller, the more unequal

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.exponent, int | float) or not 0 < self.exponent < 1000:
            raise UserError(f"exponent must be > 0 and < 1000, not {self.exponent}")

    def share(self, dataset: Dataset, pool: np.ndarray, source: random.Random) -> list[np.ndarray]:
        pool = self.cap(pool)
        low, high = np.array([0.01, 0.99]) ** (1 / self.exponent)
        shares = np.linspace(low, high, self.clients)
        shares /= shares.sum()
        if self.faithful:
            exact = shares * (len(pool) // self.clients) * self.clients
            sizes = np.ceil(exact.round(6)).astype(np.int64)  # the middle size may be an integer but for its last bit
        else:
            sizes = apportion(shares, len(pool))
        ends = np.cumsum(sizes)
        return np.split(pool[: ends[-1]], ends[:-1])


@dataclass(frozen=True, kw_only=True)
class RfflClassImbalance(Rffl):
    """`classimbalance`: equal sizes; client i has the first ``linspace(1, classes, clients)[i]`` classes.

    The released code samples each class with replacement, so a client may have an example several times and two clients
    the same one; only the remainder from rounding is drawn without. Corrected, `samples` is lowered to what the first
    class, which every client has, can supply.
    """

    def share(self, dataset: Dataset, pool: np.ndarray, source: random.Random) -> list[np.ndarray]:
        pool = self.cap(pool) if self.faithful else pool
        labels, numbers = class_labels(dataset)[pool], np.linspace(1, dataset.classes, self.clients, dtype=int)
        classes = [pool[labels == label] for label in range(dataset.classes)]
        size = len(pool) // self.clients if self.samples is None else self.samples
        if self.faithful:
            return with_replacement([own.tolist() for own in classes], numbers, size, source)
        return once(classes, numbers, size)


def with_replacement(
    classes: list[list[int]], numbers: np.ndarray, size: int, source: random.Random
) -> list[np.ndarray]:
    """Return the released code's draws, in its order."""
    parts = []
    for number in numbers:
        if not all(classes[:number]):
            raise UserError(
                f"partition: class {classes.index([])} has too few training examples for {len(numbers)} clients"
            )
        part = [example for own in classes[:number] for example in source.choices(own, k=size // number)]
        last, rest = classes[number - 1], size % number
        parts.append(np.array(part + last[:rest]))
        del last[:rest]
    return parts


def once(classes: list[np.ndarray], numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Return `size` examples per client, or as many as all can have, from the front of each class."""
    place, number = np.arange(len(classes)), numbers[:, None]
    has, available = place < number, np.array([len(own) for own in classes])
    spare = available - has.sum(0)  # rounding may add one example per client
    size = min(size, int((spare / np.maximum((has / number).sum(0), 1e-9)).min()))
    if size < 1:
        scarce = int(spare.argmin())
        raise UserError(
            f"partition: {has[:, scarce].sum()} clients share {available[scarce]} examples of class {scarce}; "
            "ask for fewer clients"
        )
    counts = has * (size // number + (place < size % number))
    return [np.concatenate(part) for part in zip(*map(np.split, classes, np.cumsum(counts, 0).T), strict=True)][:-1]
