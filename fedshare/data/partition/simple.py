"""Partitions that ignore labels: equal parts, parts of unequal size, and parts by owner."""

from dataclasses import dataclass

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split, enough, not_negative, whole
from fedshare.data.partition.counts import apportion, lift
from fedshare.data.partition.deal import deal_sizes, group, matched
from fedshare.errors import UserError
from fedshare.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Iid(Partition):
    """Equal random parts: sizes differ by at most one. With one client, this is centralised training."""

    clients: int

    def split(self, dataset: Dataset, seed: int) -> Split:
        enough(dataset, dataset.train_size, self.clients)
        sizes = apportion(np.ones(self.clients), dataset.train_size)
        return matched(dataset, deal_sizes(sizes, dataset.train_size, numpy_generator(seed, "partition")), seed)


@dataclass(frozen=True, kw_only=True)
class Quantity(Partition):
    """Quantity skew: sizes follow a power law, client 0 having most; the examples are drawn at random."""

    clients: int
    exponent: float = 1.0  # client i has examples in proportion to (i + 1) ** -exponent; 0: equal parts
    min_size: int = 2  # minimum number of training examples per client

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("exponent", self.exponent)
        whole("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, seed: int) -> Split:
        enough(dataset, dataset.train_size, self.clients, self.min_size)
        sizes = apportion(np.arange(1.0, self.clients + 1) ** -self.exponent, dataset.train_size)
        sizes = lift(sizes[:, None], np.full(self.clients, self.min_size), np.ones((self.clients, 1)))[:, 0]
        return matched(dataset, deal_sizes(sizes, dataset.train_size, numpy_generator(seed, "partition")), seed)


@dataclass(frozen=True, kw_only=True)
class Natural(Partition):
    """Each client is an owner named by the data (the speaker of a line), tested on its own test examples.

    Clients are numbered in the order of the owners' ids. The seed is not used. Examples of other owners are left out.
    """

    clients: int | None = None  # keep the owners with the most training examples; null: all with at least min_size
    min_size: int = 2  # owners with fewer training examples are left out

    def __post_init__(self) -> None:
        if self.clients is not None:
            super().__post_init__()
        whole("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, seed: int) -> Split:
        if dataset.owner is None:
            raise UserError(f"partition=natural needs an owner for each example; data={dataset.name} has none")
        ids, sizes = np.unique(dataset.owner[: dataset.train_size], return_counts=True)
        ids, sizes = ids[sizes >= self.min_size], sizes[sizes >= self.min_size]
        if len(ids) < (self.clients or 1):
            raise UserError(
                f"partition=natural: {len(ids)} owners in data={dataset.name} have {self.min_size} training examples, "
                f"not {self.clients or 1}; lower partition.clients or partition.min_size"
            )
        ids = ids[np.sort(np.argsort(-sizes, kind="stable")[: self.clients])]
        place = np.searchsorted(ids, dataset.owner).clip(max=len(ids) - 1)
        client = np.where(ids[place] == dataset.owner, place, len(ids))
        train, test = client[: dataset.train_size], client[dataset.train_size :]
        return Split(group(train, len(ids)), group(test, len(ids), dataset.train_size))
