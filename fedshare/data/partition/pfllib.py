"""The divisions of PFLlib (github.com/TsingZ0/PFLlib, Zhang et al. 2023), as used for its papers' results.

Training and test part are merged, the whole is divided, and each client keeps a random three quarters of its examples
for training. The rules are PFLlib's; its random stream is not. Where PFLlib redraws until every client has enough, the
largest clients give up the missing examples instead.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split, class_labels, enough, positive, whole
from fedshare.data.partition.counts import lift
from fedshare.data.partition.deal import deal, shuffled
from fedshare.data.partition.label import cut_classes, log_gamma, softmax
from fedshare.errors import UserError
from fedshare.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Pfllib(Partition):
    """The common part of the three divisions."""

    clients: int

    def split(self, dataset: Dataset, seed: int) -> Split:
        labels = class_labels(dataset)
        enough(dataset, len(labels), self.clients, 2)
        rng = numpy_generator(seed, "partition")
        train, test = [], []
        for own in self.divide(labels, np.bincount(labels, minlength=dataset.classes), rng):
            mixed = own[shuffled(len(own), rng)]
            tested = -(-len(own) // 4)
            train.append(np.sort(mixed[tested:]))
            test.append(np.sort(mixed[:tested]))
        return Split(train, test)

    @abstractmethod
    def divide(self, labels: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the examples of each client, training and test part together."""


def least(batch_size: int, examples: int, clients: int) -> int:
    """Return PFLlib's minimum: one test batch, or half an equal share if less; at least 2, so that one is for test."""
    return max(2, int(min(batch_size / 0.25, examples / clients / 2)))


@dataclass(frozen=True, kw_only=True)
class PfllibPat(Pfllib):
    """`pat`: each class in turn is divided, unshuffled, among the first clients that still lack classes.

    The last classes are left out if clients * classes_per_client is not a multiple of the number of classes.
    """

    classes_per_client: int = 2  # maximum number of classes per client
    balance: bool = False  # true: equal parts of a class; false: all but the last between a tenth and one equal part
    batch_size: int = 10  # determines the smallest part of a class

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("classes_per_client", self.classes_per_client, 1)
        whole("batch_size", self.batch_size, 1)

    def divide(self, labels: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        classes = len(totals)
        lacking = np.full(self.clients, self.classes_per_client)
        share = int(np.ceil(self.clients / classes * self.classes_per_client))
        smallest = least(self.batch_size, len(labels), self.clients) / classes
        parts: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in range(self.clients)]
        for label, total in enumerate(totals):
            chosen = np.flatnonzero(lacking)[:share]
            if not len(chosen):
                break
            equal = total / len(chosen)
            if self.balance:
                sizes = np.full(len(chosen) - 1, int(equal))
            else:
                low = min(int(max(equal / 10, smallest)), int(equal))
                sizes = low + (rng.random(len(chosen) - 1) * (int(equal) - low)).astype(np.int64)
            for client, part in zip(chosen, np.split(np.flatnonzero(labels == label), np.cumsum(sizes)), strict=True):
                parts[client].append(part)
            lacking[chosen] -= 1
        return [np.concatenate(part) for part in parts]


@dataclass(frozen=True, kw_only=True)
class PfllibDir(Pfllib):
    """`dir`: each class in Dirichlet proportions; clients with an equal share of all examples get no more."""

    alpha: float = 0.1  # small: few clients share a class
    batch_size: int = 10  # every client has at least four batches, or half an equal share if less

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("alpha", self.alpha)
        whole("batch_size", self.batch_size, 1)

    def divide(self, labels: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        logits = log_gamma(rng, self.alpha, (self.clients, len(totals)))
        counts = cut_classes(logits, totals, balance=True)
        smallest = np.full(self.clients, least(self.batch_size, len(labels), self.clients))
        return deal(lift(counts, smallest, softmax(logits, 1) + 1e-9), labels, rng)


@dataclass(frozen=True, kw_only=True)
class PfllibExdir(Pfllib):
    """`exdir`: clients are assigned classes; each class is divided among its clients as in `dir` (Li et al. 2023)."""

    alpha: float = 100.0  # small: a few of a class's clients have most of it
    classes_per_client: int = 2  # classes per client, unless it finds too few examples there
    min_size: int = 10  # minimum number of examples per client

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("alpha", self.alpha)
        whole("classes_per_client", self.classes_per_client, 1)
        whole("min_size", self.min_size, 2)

    def divide(self, labels: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        number, classes = self.classes_per_client, len(totals)
        if not classes / self.clients <= number <= classes:
            raise UserError(
                f"partition.classes_per_client must be {-(-classes // self.clients)} to {classes} "
                f"for every class to have a client, not {number}"
            )
        if self.clients * self.min_size > len(labels):
            raise UserError(f"partition.min_size must be <= {len(labels) // self.clients}, not {self.min_size}")
        mask = spread(np.argsort(rng.random((self.clients, classes)), axis=1) < number)
        logits = np.where(mask, log_gamma(rng, self.alpha, mask.shape), -np.inf)
        counts = cut_classes(logits, totals, balance=True)
        counts = lift(counts, np.full(self.clients, self.min_size), softmax(logits, 1))
        return deal(lift(counts, np.full(self.clients, self.min_size), np.ones(mask.shape)), labels, rng)


def spread(mask: np.ndarray) -> np.ndarray:
    """Move classes between clients until each class has at least half the clients of an equal share, and at least one.

    A client swaps one of the most assigned classes for one with too few clients, so its number of classes is unchanged.
    """
    mask = mask.copy()
    wanted = max(int(mask.sum()) // mask.shape[1] // 2, 1)
    for scarce in np.flatnonzero(mask.sum(0) < wanted):
        for _ in range(wanted - mask[:, scarce].sum()):
            common = np.argmax(mask[~mask[:, scarce]].sum(0))
            client = np.argmax(mask[:, common] & ~mask[:, scarce])
            mask[client, [common, scarce]] = False, True
    return mask
