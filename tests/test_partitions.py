"""Partitions: what every one promises, what each is for, and the exact indices of each."""

import dataclasses
import hashlib
import random
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedshare.data.dataset import Dataset, Examples
from fedshare.data.partition import (
    Dirichlet,
    DirichletClient,
    FeatureSkew,
    Fling,
    Flwr,
    Iid,
    Imbalance,
    Natural,
    Partition,
    Pathological,
    PfllibDir,
    PfllibExdir,
    PfllibPat,
    Quantity,
    RfflClassImbalance,
    RfflPowerlaw,
    RfflUniform,
    Shards,
    Split,
    counted_from_one,
    left_out,
    match,
    table,
)
from fedshare.data.partition.counts import cut, fit, lift, round_columns
from fedshare.data.partition.feature import turn
from fedshare.data.partition.pfllib import spread
from fedshare.errors import UserError
from fedshare.seeds import numpy_generator
from optional import extra

CONF = Path(__file__).parents[1] / "experiments" / "conf" / "partition"


def dataset(train: np.ndarray, test: np.ndarray, classes: int, owner: np.ndarray | None = None) -> Dataset:
    labels = torch.from_numpy(np.concatenate([train, test]).astype(np.int64))
    pixels = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return Dataset("toy", Examples(pixels, labels), len(train), classes, owner)


def toy() -> Dataset:
    """1,000 and 200 examples of 10 classes, class 0 being four times as frequent as another."""
    i = np.arange(1200)
    labels = i % 10 * (i // 10 % 3 > 0)
    return dataset(labels[:1000], labels[1000:], 10, owner=i // 7 % 30)


def mnist_size() -> Dataset:
    labels = numpy_generator(0, "labels").integers(0, 10, 70_000)
    return dataset(labels[:60_000], labels[60_000:], 10)


def unlabelled() -> Dataset:
    tokens = torch.zeros(60, 4, dtype=torch.int64)
    return Dataset("text", Examples(tokens, tokens), 50, 66, owner=np.arange(60) % 7)


OWN: list[Partition] = [
    Iid(clients=7),
    Quantity(clients=7, exponent=2.0, min_size=5),
    Dirichlet(clients=7, alpha=0.1, min_size=4),
    Dirichlet(clients=7, alpha=0.1, balance=True, min_size=10),
    DirichletClient(clients=7, alpha=0.1),
    DirichletClient(clients=3, alpha=1, sizes=[1, 2, 5]),
    Shards(clients=7),
    Pathological(clients=7),
    Imbalance(clients=7),
    Natural(clients=7),
    FeatureSkew(clients=7),
]
CONVENTIONS: list[Partition] = [
    PfllibPat(clients=10, balance=True),
    PfllibPat(clients=10),
    PfllibDir(clients=7),
    PfllibExdir(clients=7, alpha=1.0),
    Fling(clients=7, train_size=40, test_size=10),
    RfflUniform(clients=7, samples=50),
    RfflUniform(clients=7, samples=50, faithful=False),
    RfflPowerlaw(clients=7, samples=50),
    RfflPowerlaw(clients=7, samples=50, faithful=False, common_test=False),
    RfflClassImbalance(clients=7, samples=50),
    RfflClassImbalance(clients=7, samples=50, faithful=False),
]
GOLDEN: dict[str, tuple[str, list[int], list[int]]] = {
    "Iid": ("e1a55f397dd33598", [1, 6, 10, 11], [1000, 1005, 1006]),
    "Quantity-exponent=2.0-min_size=5": ("ab800d1354d58821", [28, 41, 52, 56], [1001, 1015, 1023]),
    "Dirichlet-alpha=0.1-min_size=4": ("2d86a97565b7b38b", [17, 19, 25, 27], [1005, 1007, 1009]),
    "Dirichlet-alpha=0.1-balance=True-min_size=10": ("c1374e2ac9a3e9da", [12, 17, 19, 25], [1005, 1007, 1009]),
    "DirichletClient-alpha=0.1": ("25bf5ccd2845fd9d", [17, 19, 27, 29], [1007, 1009, 1017]),
    "DirichletClient-alpha=1-sizes=[1,2,5]": ("29b6c75e7ae5abdd", [9, 19, 21, 22], [1001, 1002, 1003]),
    "Shards": ("57e59cd60eb999ee", [7, 8, 11, 19], [1009, 1018, 1019]),
    "Pathological": ("594bc7da82e043d8", [12, 16, 22, 26], [1002, 1006, 1012]),
    "Imbalance": ("084e54c37167700b", [12, 16, 22, 26], [1002, 1006, 1012]),
    "Natural": ("9b0fbfa9ef6e78a4", [7, 8, 9, 10], [1057, 1058, 1059]),
    "FeatureSkew": ("e1a55f397dd33598", [1, 6, 10, 11], [1000, 1005, 1006]),
    "PfllibPat-balance=True": ("2e3dfdef07f12319", [600, 601, 602, 603], [605, 607, 610]),
    "PfllibPat": ("9611c5d1f5fe08c0", [60, 61, 64, 65], [62, 63, 80]),
    "PfllibDir": ("d91505cf9974fbda", [12, 17, 19, 27], [25, 77, 89]),
    "PfllibExdir-alpha=1.0": ("6659f0a48cdcb795", [19, 26, 29, 46], [16, 116, 139]),
    "Fling-train_size=40-test_size=10": ("f0e8e828b4a0a8b6", [45, 85, 87, 137], [1005, 1012, 1035]),
    "RfflUniform-samples=50": ("9dcc00e98a435a60", [21, 39, 41, 51], [1000, 1001, 1002]),
    "RfflUniform-samples=50-faithful=False": ("fade7a27123951a5", [9, 31, 64, 96], [1000, 1001, 1002]),
    "RfflPowerlaw-samples=50": ("daab99df5e12c5e1", [91, 103, 127, 196], [1000, 1001, 1002]),
    "RfflPowerlaw-samples=50-faithful=False-common_test=False": (
        "097642ed874da4a4",
        [16, 50, 58, 143],
        [1010, 1018, 1022],
    ),
    "RfflClassImbalance-samples=50": ("7bb54b5c8eea8fa0", [21, 41, 41, 41], [1000, 1001, 1002]),
    "RfflClassImbalance-samples=50-faithful=False": ("dac827b287629a2b", [10, 11, 81, 101], [1000, 1001, 1002]),
}


def name(partition: Partition) -> str:
    changed = {f.name: getattr(partition, f.name) for f in dataclasses.fields(partition) if f.name != "clients"}
    defaults = {f.name: f.default for f in dataclasses.fields(partition)}
    return "-".join([type(partition).__name__, *(f"{k}={v}" for k, v in changed.items() if v != defaults[k])]).replace(
        " ", ""
    )


def digest(split: Split) -> str:
    text = repr([[part.tolist() for part in half] for half in (split.train, split.test)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("partition", OWN + CONVENTIONS, ids=name)
def test_indices_are_those_of_the_first_release(partition: Partition) -> None:
    split = partition.split(toy(), 0)
    assert (digest(split), split.train[1][:4].tolist(), split.test[1][:3].tolist()) == GOLDEN[name(partition)]


@pytest.mark.parametrize("partition", OWN + CONVENTIONS, ids=name)
def test_indices_are_sorted_int64_in_their_half_and_a_function_of_the_seed(partition: Partition) -> None:
    split, again, other = (partition.split(toy(), seed) for seed in (3, 3, 4))
    assert len(split.train) == len(split.test) == partition.clients
    for part in split.train + split.test:
        assert part.dtype == np.int64
        assert (np.diff(part) >= 0).all()
        assert len(part)
    assert digest(split) == digest(again)
    seedless = isinstance(partition, Natural) or getattr(partition, "faithful", False)
    assert (digest(split) == digest(other)) == seedless


@pytest.mark.parametrize("partition", [p for p in OWN if not isinstance(p, Natural)], ids=name)
def test_own_partitions_give_every_example_to_one_client(partition: Partition) -> None:
    split = partition.split(toy(), 0)
    assert np.array_equal(np.sort(np.concatenate(split.train)), np.arange(1000))
    assert np.array_equal(np.sort(np.concatenate(split.test)), np.arange(1000, 1200))
    tested = table(Split(split.test, []), toy().pool.y.numpy(), 10)
    assert not tested[table(split, toy().pool.y.numpy(), 10) == 0].any()


labels_of = st.integers(2, 6).flatmap(
    lambda classes: st.lists(st.integers(0, classes - 1), min_size=60, max_size=150).map(
        lambda labels: dataset(np.array(labels[:40]), np.array(labels[40:]), classes)
    )
)


@settings(max_examples=40)
@given(labels_of, st.integers(1, 10), st.floats(1e-300, 1e6), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_dirichlet_keeps_its_promises_for_any_labels(
    data: Dataset, clients: int, alpha: float, min_size: int, balance: bool, seed: int
) -> None:
    split = Dirichlet(clients=clients, alpha=alpha, min_size=min_size, balance=balance).split(data, seed)
    holds_whole_training_part(split, data)
    assert min(map(len, split.train)) >= min_size


@settings(max_examples=40)
@given(labels_of, st.integers(1, 10), st.floats(1e-300, 1e6), st.integers(0, 9))
def test_dirichlet_client_gives_equal_sizes_for_any_labels(
    data: Dataset, clients: int, alpha: float, seed: int
) -> None:
    split = DirichletClient(clients=clients, alpha=alpha).split(data, seed)
    holds_whole_training_part(split, data)
    sizes = [len(part) for part in split.train]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40)
@given(labels_of, st.integers(1, 10), st.integers(1, 4), st.floats(0, 50), st.integers(0, 9))
def test_shards_quantity_and_iid_keep_their_promises_for_any_labels(
    data: Dataset, clients: int, number: int, exponent: float, seed: int
) -> None:
    quantity = Quantity(clients=clients, exponent=exponent, min_size=number).split(data, seed)
    assert min(map(len, quantity.train)) >= number
    for split in (quantity, Iid(clients=clients).split(data, seed)):
        holds_whole_training_part(split, data)
    holds_whole_training_part(Shards(clients=clients, shards_per_client=number).split(data, seed), data)


def holds_whole_training_part(split: Split, data: Dataset) -> None:
    """All training examples once; test examples at most once, of the client's own classes, of all trained ones."""
    labels = data.pool.y.numpy()
    assert np.array_equal(np.sort(np.concatenate(split.train)), np.arange(data.train_size))
    tested = np.concatenate(split.test)
    known = np.isin(labels[data.train_size :], labels[: data.train_size])
    assert np.array_equal(np.sort(tested), data.train_size + np.flatnonzero(known))
    for train, test in zip(split.train, split.test, strict=True):
        assert np.isin(labels[test], labels[train]).all()


@pytest.mark.parametrize("alpha", [1e-310, 0.001, 0.01, 0.1])
def test_many_clients_and_a_small_alpha_find_a_split(alpha: float) -> None:
    data = mnist_size()
    split = Dirichlet(clients=500, alpha=alpha, min_size=10).split(data, 0)
    assert min(map(len, split.train)) >= 10
    assert sum(map(len, split.train)) == 60_000
    assert min(map(len, split.test)) >= 1
    if alpha <= 0.01:  # who is topped up keeps to the class drawn for it
        assert np.median((table(split, data.pool.y.numpy(), 10) > 0).sum(1)) == 1


def test_ten_thousand_clients_find_a_split() -> None:
    data = mnist_size()
    split = Iid(clients=10_000).split(data, 0)
    assert {len(part) for part in split.train} == {6}
    assert {len(part) for part in split.test} == {1}


def test_dirichlet_proportions_follow_the_distribution() -> None:
    """Dir(a) over n: mean 1/n, variance (n - 1) / n^2 / (a n + 1)."""
    data = dataset(np.arange(200_000) % 2000, np.arange(2000), 2000)
    split = Dirichlet(clients=5, alpha=0.3, min_size=1).split(data, 0)
    shares = table(split, data.pool.y.numpy(), 2000) / 100
    assert shares.mean(1) == pytest.approx(np.full(5, 0.2), abs=0.02)
    assert shares.var(1) == pytest.approx(np.full(5, 4 / 25 / 2.5), rel=0.1)


def test_balance_caps_all_but_the_class_that_crosses_an_equal_share() -> None:
    split = Dirichlet(clients=7, alpha=0.1, balance=True).split(toy(), 0)
    counts = table(split, toy().pool.y.numpy(), 10)
    before_last = [row.sum() - row[np.flatnonzero(row)[-1]] for row in counts]
    assert max(before_last) < 1000 / 7
    assert table(Dirichlet(clients=7, alpha=0.1).split(toy(), 0), toy().pool.y.numpy(), 10).sum(1).max() > 300


def test_client_sizes_are_in_the_proportions_asked_for() -> None:
    split = DirichletClient(clients=4, alpha=0.1, sizes=[1, 2, 3, 4]).split(toy(), 0)
    assert [len(part) for part in split.train] == [100, 200, 300, 400]


def test_shards_hold_at_most_one_class_more_than_they_are() -> None:
    data = mnist_size()
    split = Shards(clients=100).split(data, 0)
    assert {len(part) for part in split.train} == {600}
    assert (table(split, data.pool.y.numpy(), 10) > 0).sum(1).max() <= 4


def test_pathological_clients_have_their_number_of_classes_and_classes_their_share_of_clients() -> None:
    data = mnist_size()
    held = table(Pathological(clients=50, classes_per_client=3).split(data, 0), data.pool.y.numpy(), 10)
    assert set((held > 0).sum(1)) == {3}
    assert set((held > 0).sum(0)) == {15}
    assert held.sum(1).max() - held.sum(1).min() <= 6
    alone = table(Pathological(clients=3).split(data, 0), data.pool.y.numpy(), 10)
    assert (alone > 0).sum() == 6  # four classes have no client
    assert alone.sum() == np.bincount(data.pool.y.numpy()[:60_000])[alone.sum(0) > 0].sum()


def test_imbalance_grows_classes_and_keeps_sizes() -> None:
    data = mnist_size()
    held = table(Imbalance(clients=19, most=10).split(data, 0), data.pool.y.numpy(), 10)
    assert (held > 0).sum(1).tolist() == np.linspace(1, 10, 19).astype(int).tolist()
    assert held.sum(1).max() - held.sum(1).min() <= 3


def test_quantity_follows_its_power_law() -> None:
    sizes = np.array([len(part) for part in Quantity(clients=20, exponent=1.5).split(mnist_size(), 0).train])
    assert sizes[0] / sizes[7] == pytest.approx(8**1.5, rel=0.01)
    assert {len(part) for part in Quantity(clients=20, exponent=0).split(mnist_size(), 0).train} == {3000}


def test_natural_clients_are_the_largest_owners_in_the_order_of_their_ids() -> None:
    owner = np.array([5, 5, 5, 2, 2, 9, 9, 9, 9, 4, 5, 9, 2, 4, 4])
    data = dataset(np.zeros(10), np.zeros(5), 1, owner)
    split = Natural(clients=2).split(data, 0)
    assert [part.tolist() for part in split.train] == [[0, 1, 2], [5, 6, 7, 8]]
    assert [part.tolist() for part in split.test] == [[10], [11]]
    assert [len(part) for part in Natural(clients=None).split(data, 0).train] == [2, 3, 4]
    assert [len(part) for part in Natural(min_size=1).split(data, 0).train] == [2, 1, 3, 4]
    with pytest.raises(UserError, match=r"3 owners in data=toy have 2 training examples, not 4"):
        Natural(clients=4).split(data, 0)


@pytest.mark.parametrize("partition", [Iid(clients=3), Quantity(clients=3), Natural(clients=3)], ids=name)
def test_examples_without_classes_are_divided_by_number(partition: Partition) -> None:
    split = partition.split(unlabelled(), 0)
    assert all(len(part) >= 2 for part in split.train)
    if not isinstance(partition, Natural):
        shares = np.array([len(part) for part in split.train]) / 50 * 10
        assert [len(part) for part in split.test] == pytest.approx(shares, abs=1)


@pytest.mark.parametrize(
    "partition", [p for p in OWN + CONVENTIONS if not isinstance(p, Iid | Quantity | Natural)], ids=name
)
def test_partitions_by_class_say_what_else_there_is(partition: Partition) -> None:
    if isinstance(partition, RfflUniform | RfflPowerlaw):
        return
    expected = "partition needs a class for each example; data=text has none (use iid, quantity or natural)"
    with pytest.raises(UserError) as caught:
        partition.split(unlabelled(), 0)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Dirichlet(clients=5, alpha=0), "alpha must be > 0, not 0"),
        (lambda: Dirichlet(clients=5, alpha=float("nan")), "alpha must be > 0, not nan"),
        (lambda: Dirichlet(clients=5, alpha=float("inf")), "alpha must be > 0, not inf"),
        (lambda: Dirichlet(clients=0), "clients must be a whole number >= 1, not 0"),
        (lambda: Dirichlet(clients=5, min_size=0), "min_size must be a whole number >= 1, not 0"),
        (lambda: DirichletClient(clients=5, sizes=[1, 2]), "sizes must be 5 numbers, one a client, not 2"),
        (lambda: DirichletClient(clients=2, sizes=[1, 0]), "sizes must be > 0, not 0"),
        (lambda: Shards(clients=5, shards_per_client=0), "shards_per_client must be a whole number >= 1, not 0"),
        (lambda: Imbalance(clients=5, fewest=3, most=2), "most must be a whole number >= 3, not 2"),
        (lambda: Quantity(clients=5, exponent=-1), "exponent must be >= 0, not -1"),
        (lambda: FeatureSkew(clients=5, noise=-0.1), "noise must be >= 0, not -0.1"),
        (lambda: Fling(clients=5, test_size=0), "test_size must be a whole number >= 1, not 0"),
        (lambda: RfflPowerlaw(clients=5, exponent=0), "exponent must be > 0 and < 1000, not 0"),
        (lambda: RfflUniform(clients=5, samples=0), "samples must be a whole number >= 1, not 0"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(make: object, says: str) -> None:
    with pytest.raises(UserError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("partition", "says"),
    [
        (Iid(clients=1001), "partition: 1001 clients with at least 1 examples each need 1001; data=toy has 1000"),
        (
            Dirichlet(clients=500, min_size=3),
            "partition: 500 clients with at least 3 examples each need 1500; data=toy has 1000",
        ),
        (Pathological(clients=5, classes_per_client=11), "partition: 11 classes a client; data=toy has 10"),
        (
            Pathological(clients=900, classes_per_client=9),
            "partition: class 1 of data=toy has 66 training examples for 810 clients; "
            "ask for fewer clients or fewer classes a client",
        ),
        (
            PfllibExdir(clients=3),
            "partition.classes_per_client must be 4 to 10 for every class to have a client, not 2",
        ),
        (PfllibExdir(clients=50, min_size=30), "partition.min_size must be <= 24, not 30"),
        (
            RfflClassImbalance(clients=700, faithful=False, samples=5),
            "partition: 622 clients share 66 examples of class 1; ask for fewer clients",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else name(value),
)
def test_a_division_that_cannot_be_made_is_explained(partition: Partition, says: str) -> None:
    with pytest.raises(UserError) as caught:
        partition.split(toy(), 0)
    assert str(caught.value) == says


class TestMatch:
    def test_each_class_is_divided_in_proportion_to_training(self) -> None:
        data = dataset(np.repeat([0, 1], [60, 40]), np.repeat([0, 1], [30, 20]), 2)
        train = [np.arange(20), np.arange(20, 60), np.arange(60, 90), np.arange(90, 100)]
        tested = table(Split(match(data, train, 0), []), data.pool.y.numpy(), 2)
        assert tested.tolist() == [[10, 0], [20, 0], [0, 15], [0, 5]]

    def test_row_sums_stay_near_proportional_where_single_classes_round_to_zero(self) -> None:
        data = dataset(np.arange(1000) % 10, np.arange(200) % 10, 10)
        train = np.split(np.arange(1000), 100)  # one example of each class: 0.2 test examples of each
        assert {len(part) for part in match(data, train, 0)} == {2}

    def test_everyone_gets_one_where_there_are_enough(self) -> None:
        data = dataset(np.zeros(100), np.zeros(10), 1)
        train = np.split(np.arange(100), [92, 93, 94, 95, 96, 97, 98, 99])
        assert [len(part) for part in match(data, train, 0)] == [2, 1, 1, 1, 1, 1, 1, 1, 1]

    def test_which_example_goes_to_whom_does_not_follow_the_published_order(self) -> None:
        data = dataset(np.zeros(1000), np.zeros(1000), 1)
        first, second = match(data, [np.arange(500), np.arange(500, 1000)], 0)
        assert abs(first.mean() - second.mean()) < 60

    def test_a_class_nobody_trains_on_stays_out(self) -> None:
        data = dataset(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), 3)
        assert np.sort(np.concatenate(match(data, [np.arange(2), np.arange(2, 4)], 0))).tolist() == [4, 5]


class TestCounts:
    def test_cut_gives_the_whole_in_spite_of_rounding(self) -> None:
        assert cut(np.full(10, 0.1), 7).sum() == 7
        assert cut(np.array([0.0, 1.0, 0.0]), 5).tolist() == [0, 5, 0]

    @settings(max_examples=50)
    @given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
    def test_rounding_keeps_columns_and_moves_no_cell_by_one(self, clients: int, classes: int, seed: int) -> None:
        rng = numpy_generator(seed)
        totals = np.floor(rng.random(classes) * 50)
        weights = rng.random((clients, classes))
        quota = weights / weights.sum(0) * totals
        counts = round_columns(quota)
        assert counts.sum(0).tolist() == totals.tolist()
        assert (np.abs(counts - quota) < 1 + 1e-9).all()

    def test_fit_meets_both_sums(self) -> None:
        sizes, totals = np.array([10.0, 20, 30]), np.array([25.0, 35])
        quota = fit(np.array([[1.0, 9], [5, 5], [9, 1]]), sizes, totals)
        assert quota.sum(0) == pytest.approx(totals)
        assert quota.sum(1) == pytest.approx(sizes)

    def test_lift_takes_from_the_largest_in_the_proportions_asked_for(self) -> None:
        counts = np.array([[40, 40], [30, 0], [0, 0]])
        lifted = lift(counts, np.array([8, 8, 8]), np.array([[1.0, 1], [1, 0], [3, 1]]))
        assert lifted.tolist() == [[34, 38], [30, 0], [6, 2]]

    def test_lift_gives_no_class_with_zero_mix(self) -> None:
        counts = np.array([[0, 40], [1, 0]])
        assert lift(counts, np.array([5, 5]), np.array([[0.0, 1], [1, 0]])).tolist() == counts.tolist()


class TestPfllib:
    def test_pat_cuts_whole_classes_for_the_first_clients_that_lack_some(self) -> None:
        labels = toy().pool.y.numpy()
        split = PfllibPat(clients=5, balance=True).split(toy(), 0)
        own = [np.sort(np.concatenate(pair)) for pair in zip(split.train, split.test, strict=True)]
        # ceil(5 / 10 * 2) = 1 client a class: two classes each, whole, in order.
        for client, examples in enumerate(own):
            assert np.array_equal(examples, np.flatnonzero(labels // 2 == client))
        pair = PfllibPat(clients=20, balance=True).split(toy(), 0)
        third = np.sort(np.concatenate([pair.train[2], pair.test[2]]))
        zeros, ones = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        assert np.array_equal(third, np.sort(np.concatenate([zeros[2 * 120 : 3 * 120], ones[2 * 20 : 3 * 20]])))

    def test_unbalanced_parts_are_at_least_a_tenth_of_an_equal_one(self) -> None:
        data = mnist_size()
        split = PfllibPat(clients=20).split(data, 0)
        parts = table(
            Split([np.concatenate(p) for p in zip(split.train, split.test, strict=True)], []), *labelled(data)
        )
        equal = parts.sum(0) / 4
        assert (parts[parts > 0] >= np.floor(np.tile(equal / 10, (20, 1))[parts > 0])).all()
        assert (parts.max(0) > 1.2 * equal).all()

    @pytest.mark.parametrize("partition", [p for p in CONVENTIONS if "Pfllib" in name(p)], ids=name)
    def test_training_and_test_part_are_merged_and_cut_at_three_quarters(self, partition: Partition) -> None:
        split = partition.split(toy(), 0)
        assert np.array_equal(np.sort(np.concatenate(split.train + split.test)), np.arange(1200))
        for train, test in zip(split.train, split.test, strict=True):
            assert len(train) == (len(train) + len(test)) * 3 // 4
        assert min(part.min() for part in split.test) < 1000 < max(part.max() for part in split.train)

    @pytest.mark.parametrize("alpha", [0.001, 0.1])
    def test_dir_answers_where_drawing_again_would_not_end(self, alpha: float) -> None:
        split = PfllibDir(clients=500, alpha=alpha).split(mnist_size(), 0)
        assert min(len(a) + len(b) for a, b in zip(split.train, split.test, strict=True)) >= 40

    def test_exdir_gives_each_client_its_classes_and_each_class_enough_clients(self) -> None:
        data = mnist_size()
        split = PfllibExdir(clients=20, alpha=10.0, classes_per_client=3).split(data, 0)
        held = table(Split([np.concatenate(p) for p in zip(split.train, split.test, strict=True)], []), *labelled(data))
        assert (held > 0).sum(1).max() == 3
        assert (held > 0).sum(0).min() >= 3
        assert held.sum() == 70_000

    @pytest.mark.parametrize(("clients", "number"), [(5, 2), (20, 1), (7, 9), (10, 1), (30, 4)])
    def test_exdir_spreads_classes_however_lopsided_the_draw(self, clients: int, number: int) -> None:
        mask = np.zeros((clients, 10), bool)
        mask[:, :number] = True
        even = spread(mask)
        assert set(even.sum(1)) == {number}
        assert even.sum(0).min() >= max(clients * number // 10 // 2, 1)

    def test_exdir_honours_min_size_where_its_classes_are_too_small(self) -> None:
        split = PfllibExdir(clients=40, alpha=0.01, classes_per_client=1, min_size=30).split(toy(), 0)
        assert {len(a) + len(b) for a, b in zip(split.train, split.test, strict=True)} == {30}


def labelled(data: Dataset) -> tuple[np.ndarray, int]:
    return data.pool.y.numpy(), data.classes


class TestFling:
    def test_sizes_are_exact_and_test_has_the_proportions_of_training(self) -> None:
        data = mnist_size()
        split = Fling(clients=30).split(data, 0)
        train, test = table(split, *labelled(data)), table(Split(split.test, []), *labelled(data))
        assert set(train.sum(1)) == {500}
        assert set(test.sum(1)) == {100}
        assert np.abs(train / 5 - test).max() <= 1.2
        assert all(len(set(part)) == len(part) for part in split.train + split.test)
        assert len(set(np.concatenate(split.train))) < 30 * 500

    def test_the_last_class_bears_no_rounding(self) -> None:
        """Rounding each class alone would leave the tenth with up to nine halves too many or too few."""
        data = mnist_size()
        small = table(Fling(clients=400, alpha=50.0, train_size=15).split(data, 0), *labelled(data))
        assert small[:, -1].mean() == pytest.approx(1.5, abs=0.1)
        assert small[:, -1].max() <= 4

    def test_a_class_without_test_examples_is_given_to_nobody(self) -> None:
        data = dataset(np.arange(90) % 3, np.arange(20) % 2, 3)
        split = Fling(clients=50, alpha=0.01, train_size=9, test_size=4).split(data, 0)
        assert table(split, *labelled(data)).sum(0)[2] == 0
        assert {len(part) for part in split.test} == {4}

    def test_a_class_too_small_is_drawn_again_and_again(self) -> None:
        split = Fling(clients=3, train_size=5000, test_size=10).split(toy(), 0)
        assert [len(part) for part in split.train] == [5000] * 3


class TestRffl:
    def test_faithful_order_is_the_released_code_s(self) -> None:
        order = list(range(1000))
        random.Random(1111).shuffle(order)
        split = RfflUniform(clients=5, samples=100).split(toy(), 0)
        assert [part.tolist() for part in split.train] == [sorted(order[i : i + 100]) for i in range(0, 500, 100)]
        assert sum(len(part) for part in RfflUniform(clients=5, samples=None).split(toy(), 0).train) == 800

    def test_power_law_sizes_are_scipy_s_quantiles_rounded_up(self) -> None:
        split = RfflPowerlaw(clients=10).split(mnist_size(), 0)
        assert [len(part) for part in split.train] == [71, 189, 306, 424, 542, 659, 777, 895, 1012, 1125]
        mended = RfflPowerlaw(clients=10, faithful=False).split(mnist_size(), 0)
        assert sum(len(part) for part in mended.train) == 6000

    def test_class_imbalance_draws_what_the_released_code_draws(self) -> None:
        source, order = random.Random(1111), list(range(1000))
        source.shuffle(order)
        classes = [[i for i in order[:350] if toy().pool.y[i] == label] for label in range(10)]
        first = source.choices(classes[0], k=50)
        second = source.choices(classes[0], k=25) + source.choices(classes[1], k=25)
        split = RfflClassImbalance(clients=7, samples=50).split(toy(), 0)
        assert split.train[0].tolist() == sorted(first)
        assert split.train[1].tolist() == sorted(second)

    def test_mended_class_imbalance_gives_no_example_twice_and_equal_sizes(self) -> None:
        data = mnist_size()
        split = RfflClassImbalance(clients=10, faithful=False).split(data, 0)
        assert len(set(np.concatenate(split.train))) == 10 * 600
        held = table(split, *labelled(data))
        for client, row in enumerate(held):
            assert np.flatnonzero(row).tolist() == list(range(client + 1))
            assert row[row > 0].max() - row[row > 0].min() <= 1
        lowered = RfflClassImbalance(clients=10, faithful=False).split(toy(), 0)
        assert len({len(part) for part in lowered.train}) == 1

    def test_everyone_is_tested_on_the_whole_test_part_or_its_match(self) -> None:
        common = RfflClassImbalance(clients=4).split(toy(), 0)
        assert all(np.array_equal(part, np.arange(1000, 1200)) for part in common.test)
        divided = RfflClassImbalance(clients=4, common_test=False).split(toy(), 0)
        assert set(toy().pool.y[divided.test[0]].tolist()) == {0}
        assert len(np.concatenate(divided.test)) == 200


class TestFeatureSkew:
    def images(self, size: tuple[int, int] = (6, 6)) -> Examples:
        x = numpy_generator(0, "images").integers(0, 256, (20, 3, *size), dtype=np.uint8)
        return Examples(torch.from_numpy(x), torch.arange(20), (0.5,) * 3, (0.2,) * 3)

    def test_right_angles_are_exact_and_go_round(self) -> None:
        skew, images = FeatureSkew(clients=8), self.images()
        for client in range(8):
            seen = skew.view(client, images, 0)
            assert torch.equal(seen.x, torch.rot90(images.x, client % 4, (2, 3)))
            assert torch.equal(seen.y, images.y)
            assert (seen.mean, seen.std) == (images.mean, images.std)

    def test_any_angle_agrees_with_right_angles(self) -> None:
        smooth = torch.nn.functional.avg_pool2d(self.images((20, 20)).x.float(), 5, 1, 2).to(torch.uint8)
        almost, exact = turn(smooth, 89.99).float(), turn(smooth, 90).float()
        assert (almost - exact)[:, :, 1:-1, 1:-1].abs().max() <= 2
        assert (turn(turn(smooth, 30), -30).float() - smooth.float())[:, :, 7:13, 7:13].abs().mean() < 6
        assert turn(self.images((4, 6)).x, 90).shape == (20, 3, 4, 6)

    def test_noise_grows_with_the_client_and_belongs_to_the_example(self) -> None:
        skew, images = FeatureSkew(clients=4, rotation=0, noise=0.1), self.images()
        grey = dataclasses.replace(
            images, x=torch.full((500, 3, 6, 6), 128, dtype=torch.uint8), y=torch.zeros(500, dtype=torch.int64)
        )
        grey.x[:, 0, 0, 0] = torch.arange(500) % 250  # each image its own bytes
        for client in range(4):
            spread = (skew.view(client, grey, 0).x.float() - grey.x.float())[:, 1].std()
            assert spread == pytest.approx(255 * 0.1 * (client + 1) / 4, rel=0.05)
        whole = skew.view(3, images, 0)
        part = skew.view(3, images.subset(np.array([17, 4])), 0)
        assert torch.equal(part.x, whole.x[[17, 4]])
        assert not torch.equal(skew.view(3, images, 1).x, whole.x)
        assert not torch.equal(skew.view(2, images, 0).x, whole.x)
        assert len(skew.view(3, images.subset(np.empty(0, np.int64)), 0)) == 0

    def test_colour_scales_channels_and_is_the_client_s_own(self) -> None:
        skew, grey = FeatureSkew(clients=4, rotation=0, colour=0.5), self.images()
        grey = dataclasses.replace(grey, x=torch.full_like(grey.x, 100))
        seen = [skew.view(client, grey, 0).x for client in range(4)]
        for x in seen:
            assert all(len(x[:, channel].unique()) == 1 for channel in range(3))
            assert 50 <= x.min() < x.max() <= 150
        assert not torch.equal(seen[0], seen[1])

    def test_it_needs_images(self) -> None:
        data = toy()
        features = dataclasses.replace(data, pool=Examples(data.pool.x.float(), data.pool.y))
        with pytest.raises(UserError, match="partition=feature_skew needs images; data=toy has none"):
            FeatureSkew(clients=3).split(features, 0)

    def test_other_partitions_change_nothing(self) -> None:
        images = self.images()
        assert Iid(clients=3).view(2, images, 0) is images


class Absent(MetaPathFinder):
    """As if a library were not installed."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname.split(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


class TestFlwr:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        extra("flwr_datasets")

    def spec(self, kind: str, **arguments: object) -> dict[str, object]:
        return {"_target_": f"flwr_datasets.partitioner.{kind}", **arguments}

    @pytest.mark.parametrize(
        ("kind", "arguments"),
        [
            ("IidPartitioner", {"num_partitions": 7}),
            ("DirichletPartitioner", {"num_partitions": 7, "partition_by": "label", "alpha": 0.3}),
            ("PathologicalPartitioner", {"num_partitions": 7, "partition_by": "label", "num_classes_per_partition": 5}),
            ("LinearPartitioner", {"num_partitions": 7}),
        ],
    )
    def test_the_training_part_is_the_partitioner_s_and_the_test_part_matches(
        self, kind: str, arguments: dict[str, object]
    ) -> None:
        partition = Flwr(clients=7, partitioner=self.spec(kind, **arguments))
        split = partition.split(toy(), 0)
        holds_whole_training_part(split, toy())
        assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in split.train)
        assert digest(partition.split(toy(), 0)) == digest(split)
        assert not np.array_equal(partition.split(toy(), 1).train[0], split.train[0])

    def test_owners_are_a_column_and_the_partitioner_may_be_an_object(self) -> None:
        from flwr_datasets.partitioner import NaturalIdPartitioner

        partition = Flwr(partitioner=NaturalIdPartitioner(partition_by="owner"))
        split = partition.split(toy(), 0)
        assert [part.tolist() for part in split.train] == [part.tolist() for part in Natural().split(toy(), 0).train]
        assert digest(partition.split(toy(), 0)) == digest(split)  # the object is as new

    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            (
                {"kind": "DirichletPartitioner", "num_partitions": 400, "partition_by": "label", "alpha": 0.01},
                "partition=flwr: DirichletPartitioner: The max number of attempts (10) was reached. ",
            ),
            (
                {"kind": "IidPartitioner", "num_partitions": 3},
                "partition=flwr: the partitioner makes 3 parts, not clients=400",
            ),
            (
                {"kind": "IidPartitioner", "partitions": 3},
                "partition.partitioner._target_=flwr_datasets.partitioner.IidPartitioner: ",
            ),
            ({"kind": "NoSuch"}, "partition.partitioner._target_=flwr_datasets.partitioner.NoSuch: "),
        ],
    )
    def test_its_failures_are_one_line(self, spec: dict[str, object], says: str) -> None:
        spec = dict(spec)
        partition = Flwr(clients=400, partitioner=self.spec(str(spec.pop("kind")), **spec))
        with pytest.raises(UserError) as caught:
            partition.split(toy(), 0)
        assert str(caught.value).startswith(says)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("module", ["flwr_datasets", "datasets"])
    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        for known in [known for known in sys.modules if known.split(".")[0] == module]:
            monkeypatch.delitem(sys.modules, known)
        monkeypatch.setattr(sys, "meta_path", [Absent(module), *sys.meta_path])
        partition = Flwr(clients=7, partitioner=self.spec("IidPartitioner", num_partitions=7))
        with pytest.raises(UserError) as caught:
            partition.split(toy(), 0)
        package = module.replace("_", "-")
        assert str(caught.value) == f"partition=flwr needs {package}: pip install 'fedshare[partitioners]'"


LEFT: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]] = {  # which rows somebody gets
    "none": (lambda rows, labels: rows >= 0, ""),
    "some rows": (lambda rows, labels: rows % 10 > 0, "partition: 100 of 1,000 training examples are given to nobody"),
    "one row": (lambda rows, labels: rows != 5, "partition: 1 of 1,000 training examples are given to nobody"),
    "a class": (
        lambda rows, labels: labels != 4,
        "partition: 66 of 1,000 training examples are given to nobody, and of these classes none: 4",
    ),
    "classes": (
        lambda rows, labels: (labels != 4) & (labels != 9),
        "partition: 132 of 1,000 training examples are given to nobody, and of these classes none: 4, 9",
    ),
}


class Leaving:
    """Somebody's own partitioner, which looks like those of flwr-datasets."""

    num_partitions = 3

    def __init__(self, case: str) -> None:
        self.case = case

    def load_partition(self, place: int) -> dict[str, list[int]]:
        rows, labels = (np.array(self.dataset[key]) for key in ("idx", "label"))  # type: ignore[attr-defined]
        return {"idx": rows[LEFT[self.case][0](rows, labels)][place::3].tolist()}


@pytest.mark.parametrize("case", LEFT)
def test_what_a_partitioner_gives_to_nobody_is_counted(case: str) -> None:
    extra("datasets")
    partition = Flwr(clients=3, partitioner={"_target_": f"{__name__}.Leaving", "case": case})
    assert left_out(partition.split(toy(), 0), toy()) == LEFT[case][1]


def test_examples_without_classes_are_counted_too() -> None:
    split = Split([np.arange(0, 20), np.arange(10, 47)], [np.arange(50, 60)] * 2)  # ten of them twice
    assert left_out(split, unlabelled()) == "partition: 3 of 50 training examples are given to nobody"


def test_classes_that_are_counted_from_1_are_pointed_out() -> None:
    ten = np.arange(20) % 10
    assert counted_from_one(dataset(ten + 1, ten + 1, 11)) == (
        "data: no example is of class 0: labels are 1 to 10, of 11 classes"
    )
    assert counted_from_one(dataset(ten, ten + 1, 11)) == ""
    assert counted_from_one(unlabelled()) == ""


@pytest.mark.parametrize("path", sorted(set(CONF.glob("*.yaml")) - {CONF / "own.yaml"}), ids=lambda path: path.stem)
def test_config_has_every_field_with_its_default(path: Path) -> None:
    node = OmegaConf.load(path)
    config = OmegaConf.create({"seed": 0, "data": {"clients": 6}, "partition": node})
    if path.stem == "flwr":
        extra("flwr_datasets")
    partition = instantiate(config, _convert_="all")["partition"]
    fields = {field.name: field for field in dataclasses.fields(partition)}
    assert set(node) - {"_target_", "_recursive_"} == set(fields)
    assert partition.clients == 6
    for key, field in fields.items():
        if key not in ("clients", "partitioner"):
            assert getattr(partition, key) == field.default
    assert len(partition.split(toy(), 0).train) == 6
