"""The division of Fling (github.com/kxzxvbk/Fling), on which FedCAC's authors report (Wu et al. 2023)."""

from dataclasses import dataclass

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split, class_labels, positive, whole
from fedshare.data.partition.counts import apportion
from fedshare.data.partition.label import log_gamma, softmax
from fedshare.errors import UserError
from fedshare.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Fling(Partition):
    """Each client draws its class proportions, then a number of training and test examples in these proportions.

    Clients draw from the whole set, so two may have the same example; one client has an example twice only if it
    needs more of a class than there are. Fling adjusts the last class for rounding; here largest remainders are used.
    """

    clients: int
    alpha: float = 0.1  # of the Dirichlet distribution over classes; small: one class fills a client
    train_size: int = 500  # training examples of each client
    test_size: int = 100  # test examples of each client

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("alpha", self.alpha)
        whole("train_size", self.train_size, 1)
        whole("test_size", self.test_size, 1)

    def split(self, dataset: Dataset, seed: int) -> Split:
        labels, first = class_labels(dataset), dataset.train_size
        rng = numpy_generator(seed, "partition")
        logits = log_gamma(rng, self.alpha, (self.clients, dataset.classes))
        train = [np.flatnonzero(labels[:first] == label) for label in range(dataset.classes)]
        test = [first + np.flatnonzero(labels[first:] == label) for label in range(dataset.classes)]
        known = np.array([min(len(own), len(other)) > 0 for own, other in zip(train, test, strict=True)])
        if not known.any():
            raise UserError(f"partition=fling: no class of data={dataset.name} has both training and test examples")
        mixes = softmax(np.where(known, logits, -np.inf), 1)
        return Split(
            [draw(train, apportion(mix, self.train_size), rng) for mix in mixes],
            [draw(test, apportion(mix, self.test_size), rng) for mix in mixes],
        )


def draw(classes: list[np.ndarray], counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return random examples of each class, sorted; a class with too few is repeated."""
    chosen = []
    for own, count in zip(classes, counts, strict=True):
        if count:
            times, rest = divmod(count, len(own))
            chosen += [np.repeat(own, times), own[np.argpartition(rng.random(len(own)), rest)[:rest]]]
    return np.sort(np.concatenate(chosen))
