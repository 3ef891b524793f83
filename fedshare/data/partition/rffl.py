"""The three splits of RFFL (Xu & Lyu 2020, arXiv 2011.10464), `faithful` to its released code or mended.

Faithful is that code's own sample: Python's ``Random(1111)`` puts the training part in order, four fifths of it are
kept (the rest is its validation set), then at most ``clients * samples``. The seed plays no part. Mended, the order
comes from the seed, nothing is set aside for validation, and no example is given twice.

Everyone is tested on the whole test part: the paper correlates accuracies, which only one test set makes comparable.
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
    """What the three have in common."""

    clients: int
    samples: int | None = 600  # training examples of a client on average, where there are as many; null: all there are
    faithful: bool = True  # the released code's own sample; false: drawn by the seed, and mended
    common_test: bool = True  # everyone is tested on the whole test part; false: it is divided as the training part is

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
        """The examples of each client, from those in `pool`, which are in random order."""


@dataclass(frozen=True, kw_only=True)
class RfflUniform(Rffl):
    """`uniform`: equal parts."""

    def share(self, dataset: Dataset, pool: np.ndarray, source: random.Random) -> list[np.ndarray]:
        return np.array_split(self.cap(pool), self.clients)


@dataclass(frozen=True, kw_only=True)
class RfflPowerlaw(Rffl):
    """`powerlaw`: equal classes, sizes in proportion to quantiles of the density ``a * x ** (a - 1)`` on [0, 1].

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
            sizes = np.ceil(exact.round(6)).astype(np.int64)  # the middle one may be whole but for its last bit
        else:
            sizes = apportion(shares, len(pool))
        ends = np.cumsum(sizes)
        return np.split(pool[: ends[-1]], ends[:-1])


@dataclass(frozen=True, kw_only=True)
class RfflClassImbalance(Rffl):
    """`classimbalance`: equal sizes, client i having the first ``linspace(1, classes, clients)[i]`` classes.

    The released code samples each class with replacement, so that a client may have an example several times and two
    clients the same one; only what rounding leaves over is taken once. Mended, `samples` is lowered to what the first
    class, which everyone has, is enough for.
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
    """The released code's own draws, in its order."""
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
    """`size` examples each, or as many as there are for all, from the front of each class."""
    place, number = np.arange(len(classes)), numbers[:, None]
    has, available = place < number, np.array([len(own) for own in classes])
    spare = available - has.sum(0)  # rounding may take one example more for each client
    size = min(size, int((spare / np.maximum((has / number).sum(0), 1e-9)).min()))
    if size < 1:
        scarce = int(spare.argmin())
        raise UserError(
            f"partition: {has[:, scarce].sum()} clients share {available[scarce]} examples of class {scarce}; "
            "ask for fewer clients"
        )
    counts = has * (size // number + (place < size % number))
    return [np.concatenate(part) for part in zip(*map(np.split, classes, np.cumsum(counts, 0).T), strict=True)][:-1]
