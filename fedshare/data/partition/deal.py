"""From counts to examples: which client gets which example, and the matching test part."""

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Split, table
from fedshare.data.partition.counts import lift, round_columns
from fedshare.seeds import numpy_generator


def group(owner: np.ndarray, clients: int, first: int = 0) -> list[np.ndarray]:
    """Return the indices of each client's examples; ``owner[i]`` owns ``first + i``, and no client if out of range."""
    ends = np.cumsum(np.bincount(owner, minlength=clients))[:clients]
    return np.split(np.argsort(owner, kind="stable") + first, ends)[:clients]


def deal(counts: np.ndarray, labels: np.ndarray, rng: np.random.Generator, first: int = 0) -> list[np.ndarray]:
    """Give client i ``counts[i, c]`` random examples of class c, without replacement; leave out the rest."""
    clients, classes = counts.shape
    nobody = np.bincount(labels, minlength=classes) - counts.sum(0)
    owner = np.empty(len(labels), np.int64)
    by_class = np.lexsort((rng.random(len(labels)), labels))
    owner[by_class] = np.repeat(np.tile(np.arange(clients + 1), classes), np.vstack([counts, nobody]).T.ravel())
    return group(owner, clients, first)


def shuffled(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return 0 to n-1 in random order."""
    return np.argsort(rng.random(n), kind="stable")


def deal_sizes(sizes: np.ndarray, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Give client i ``sizes[i]`` of n examples, regardless of class."""
    owner = np.full(n, len(sizes))
    owner[shuffled(n, rng)[: sizes.sum()]] = np.repeat(np.arange(len(sizes)), sizes)
    return group(owner, len(sizes))


def match(dataset: Dataset, train: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Divide the test part like the training part: each class in proportion to the clients' training examples of it.

    No client is tested on a class it does not train on. Each client gets at least one test example if its classes have
    enough, because accuracy per client needs one. Examples are drawn at random: published test sets are ordered (the
    first half of MNIST's is easier). A class that no client trains on is left out. If examples have no class, only the
    number of training examples counts.
    """
    labels, classes = dataset.labels, dataset.classes
    if labels is None:
        labels, classes = np.zeros(len(dataset.pool), np.int64), 1
    wanted = labels[dataset.train_size :]
    held = table(Split(train, []), labels, classes)
    counts = round_columns(held * (np.bincount(wanted, minlength=classes) / np.maximum(held.sum(0), 1)))
    counts = lift(counts, np.ones(len(train), np.int64), held)
    return deal(counts, wanted, numpy_generator(seed, "partition", "test"), first=dataset.train_size)


def matched(dataset: Dataset, train: list[np.ndarray], seed: int) -> Split:
    return Split(train, match(dataset, train, seed))
