"""Label skew: clients differ in their class frequencies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split, class_labels, enough, positive, whole
from fedshare.data.partition.counts import apportion, cut, fit, lift, round_columns
from fedshare.data.partition.deal import deal, group, matched
from fedshare.errors import UserError
from fedshare.seeds import numpy_generator


def log_gamma(rng: np.random.Generator, alpha: float, shape: tuple[int, int]) -> np.ndarray:
    """Return logarithms of Gamma(alpha) draws: normalised by their sum along an axis, they are Dirichlet(alpha).

    Gamma(a) is Gamma(a + 1) * U ** (1 / a). Logarithms are needed for a small alpha: at 0.001 the draws are mostly
    zero, and normalising them would be 0 / 0.
    """
    return np.log(rng.standard_gamma(alpha + 1, shape)) + np.log1p(-rng.random(shape)) / max(alpha, 1e-300)


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def cut_classes(logits: np.ndarray, totals: np.ndarray, balance: bool) -> np.ndarray:
    """Divide each class in proportion to ``exp(logits)``, class after class, into a table of counts.

    With `balance`, a client that already has an equal share of all examples gets none of the later classes.
    """
    counts = np.zeros(logits.shape, np.int64)
    for column, total in enumerate(totals):
        claim = logits[:, column]
        if balance:
            hungry = np.where(counts.sum(1) < totals.sum() / len(counts), claim, -np.inf)
            claim = hungry if np.isfinite(hungry).any() else claim
        counts[:, column] = cut(softmax(claim, 0), total)
    return counts


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Each class is divided among the clients in proportions drawn from a Dirichlet distribution (Hsu et al. 2019).

    A client below `min_size` is topped up, in its drawn class proportions, from the largest clients, so no redraw is
    needed. FedPEFT's division (Sun et al. 2022) is `balance=true min_size=10`.
    """

    clients: int
    alpha: float = 0.3  # small: few clients share a class; large: near to equal parts
    balance: bool = False  # a client with an equal share of all examples gets none of the later classes
    min_size: int = 2  # minimum number of training examples per client

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("alpha", self.alpha)
        whole("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, seed: int) -> Split:
        labels = class_labels(dataset)[: dataset.train_size]
        enough(dataset, len(labels), self.clients, self.min_size)
        rng, totals = numpy_generator(seed, "partition"), np.bincount(labels, minlength=dataset.classes)
        logits = log_gamma(rng, self.alpha, (self.clients, dataset.classes))
        counts = cut_classes(logits, totals, self.balance)
        counts = lift(counts, np.full(self.clients, self.min_size), softmax(logits, 1) + 1e-9)
        return matched(dataset, deal(counts, labels, rng), seed)


@dataclass(frozen=True, kw_only=True)
class DirichletClient(Partition):
    """Each client draws its own class mixture from a Dirichlet distribution; sizes are given (Acar et al. 2021).

    The mixtures rarely add up to the examples available, so iterative proportional fitting adjusts them as little as
    possible; no client has to take only what the others left.
    """

    clients: int
    alpha: float = 0.3  # small: one class fills a client; large: near to equal parts
    sizes: Sequence[float] | None = None  # one number per client; examples are divided in proportion; null: equal sizes

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("alpha", self.alpha)
        if self.sizes is not None:
            if len(self.sizes) != self.clients:
                raise UserError(f"sizes must be {self.clients} numbers, one a client, not {len(self.sizes)}")
            for size in self.sizes:
                positive("sizes", size)

    def split(self, dataset: Dataset, seed: int) -> Split:
        labels = class_labels(dataset)[: dataset.train_size]
        enough(dataset, len(labels), self.clients)
        rng, totals = numpy_generator(seed, "partition"), np.bincount(labels, minlength=dataset.classes)
        sizes = apportion(np.ones(self.clients) if self.sizes is None else np.array(list(self.sizes)), len(labels))
        mix = softmax(log_gamma(rng, self.alpha, (self.clients, dataset.classes)), 1) + 1e-6
        counts = lift(round_columns(fit(mix, sizes, totals)), np.maximum(sizes, 1), mix)
        return matched(dataset, deal(counts, labels, rng), seed)


@dataclass(frozen=True, kw_only=True)
class Shards(Partition):
    """Sort by class, cut into equal shards, and give each client the same number of them (McMahan et al. 2017)."""

    clients: int
    shards_per_client: int = 2  # about how many classes a client has

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("shards_per_client", self.shards_per_client, 1)

    def split(self, dataset: Dataset, seed: int) -> Split:
        labels = class_labels(dataset)[: dataset.train_size]
        enough(dataset, len(labels), self.clients, self.shards_per_client)
        rng, shards = numpy_generator(seed, "partition"), self.clients * self.shards_per_client
        by_class = np.lexsort((rng.random(len(labels)), labels))
        place = np.argsort(rng.random(shards), kind="stable") // self.shards_per_client
        owner = np.empty(len(labels), np.int64)
        owner[by_class] = place[np.arange(len(labels)) * shards // len(labels)]
        return matched(dataset, group(owner, self.clients), seed)


def choose_classes(rng: np.random.Generator, numbers: np.ndarray, classes: int) -> np.ndarray:
    """Return each client's ``numbers[i]`` classes, bool ``[clients, classes]``, drawn from the least assigned ones."""
    mask, holders = np.zeros((len(numbers), classes), bool), np.zeros(classes, np.int64)
    for row, number, ticket in zip(mask, numbers, rng.random(mask.shape), strict=True):
        row[np.lexsort((ticket, holders))[:number]] = True
        holders += row
    return mask


@dataclass(frozen=True, kw_only=True)
class Imbalance(Partition):
    """Class imbalance: a client's number of classes grows with its id; sizes are as equal as that allows."""

    clients: int
    fewest: int = 1  # classes of the first client
    most: int | None = None  # classes of the last client; null: all there are

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("fewest", self.fewest, 1)
        if self.most is not None:
            whole("most", self.most, self.fewest)

    def split(self, dataset: Dataset, seed: int) -> Split:
        labels = class_labels(dataset)[: dataset.train_size]
        rng, totals = numpy_generator(seed, "partition"), np.bincount(labels, minlength=dataset.classes)
        most = dataset.classes if self.most is None else self.most
        if max(self.fewest, most) > dataset.classes:
            raise UserError(
                f"partition: {max(self.fewest, most)} classes a client; data={dataset.name} has {dataset.classes}"
            )
        numbers = np.linspace(self.fewest, most, self.clients).astype(np.int64)
        mask = choose_classes(rng, numbers, dataset.classes)
        holders = mask.sum(0)
        if (holders > totals).any():
            scarce = int(np.argmax(holders - totals))
            raise UserError(
                f"partition: class {scarce} of data={dataset.name} has {totals[scarce]} training examples for "
                f"{holders[scarce]} clients; ask for fewer clients or fewer classes a client"
            )
        # First one example of each of its classes for every client, then the rest.
        rest = np.where(holders > 0, totals - holders, 0)
        sizes = ((rest.sum() + holders.sum()) / self.clients - numbers).clip(min=1)
        counts = mask + round_columns(fit(mask.astype(float), sizes, rest))
        return matched(dataset, deal(counts, labels, rng), seed)


@dataclass(frozen=True, kw_only=True)
class Pathological(Partition):
    """Every client has the same number of classes, drawn so that each class has about as many clients.

    If clients * classes_per_client < classes, classes that no client has are left out.
    """

    clients: int
    classes_per_client: int = 2  # exact number of classes per client

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("classes_per_client", self.classes_per_client, 1)

    def split(self, dataset: Dataset, seed: int) -> Split:
        number = self.classes_per_client
        return Imbalance(clients=self.clients, fewest=number, most=number).split(dataset, seed)
