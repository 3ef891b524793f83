"""Fairness and robustness as numbers: against closed forms, at the extremes, and where there is nothing to tell."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshare.report.fairness import collaborative, jain, pearson
from fedshare.report.robustness import detection, mean, observed, split
from fedshare.tasks.metrics import worst_share

ACCURACIES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30)


def spreads(values: list[float]) -> bool:
    return float(np.std(values)) > 1e-3


@given(ACCURACIES)
def test_pearson_is_numpys(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(values) for values in zip(*pairs, strict=True))
    if spreads(a) and spreads(b):
        assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
        assert pearson(a, b) == pearson(b, a)
        assert -1 <= pearson(a, b) <= 1


@given(ACCURACIES, st.floats(0.1, 10), st.floats(-1, 1))
def test_scale_and_origin_do_not_matter_and_the_sign_turns_it(
    pairs: list[tuple[float, float]], scale: float, origin: float
) -> None:
    a, b = (list(values) for values in zip(*pairs, strict=True))
    if spreads(a) and spreads(b):
        moved = [scale * value + origin for value in a]
        assert pearson(moved, b) == pytest.approx(pearson(a, b), abs=1e-9)
        assert pearson([-value for value in moved], b) == pytest.approx(-pearson(a, b), abs=1e-9)


@given(ACCURACIES.flatmap(lambda pairs: st.tuples(st.just(pairs), st.permutations(range(len(pairs))))))
def test_the_order_of_the_clients_does_not_matter(data: tuple[list[tuple[float, float]], list[int]]) -> None:
    pairs, order = data
    values, others = (list(zip(*some, strict=True)) for some in (pairs, [pairs[position] for position in order]))
    if spreads(values[0]) and spreads(values[1]):
        assert pearson(*others) == pytest.approx(pearson(*values), abs=1e-12)


def test_pearson_by_hand() -> None:
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert pearson([-1, 0, 1], [1, 0, 1]) == pytest.approx(0, abs=1e-15)
    assert collaborative([0.1, 0.2, 0.3], [0.5, 0.7, 0.6]) == pytest.approx(50)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]),
        ([0.1, 0.2, 0.3], [0.1 + 0.2, 0.3, 0.3]),  # what differs in the last bit does not spread
        ([0.0, 0.0], [0.0, 1.0]),
        ([0.9, 0.9 + 1e-8], [0.1, 0.2]),
        ([1.0], [1.0]),
        ([], []),
        ([0.1, math.nan], [0.1, 0.2]),
        ([0.1, 0.2], [math.inf, 0.2]),
    ],
)
def test_what_does_not_spread_has_no_correlation(a: list[float], b: list[float]) -> None:
    assert math.isnan(pearson(a, b))
    assert math.isnan(pearson(b, a))
    assert math.isnan(collaborative(a, b))


def test_extremes_do_not_overflow() -> None:
    for scale in (1e-300, 1e300, 1.7e308, 5e-324):
        assert pearson([-scale, 0.0, scale], [1.0, 2.0, 3.0]) == pytest.approx(1)
        assert jain([scale, scale]) == pytest.approx(1)
        assert jain([scale, 0.0]) == pytest.approx(0.5)


def test_pairs_are_pairs() -> None:
    with pytest.raises(ValueError, match="2 and 3 values are no pairs"):
        pearson([1, 2], [1, 2, 3])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_jain_lies_between_one_has_all_and_all_have_alike(values: list[float]) -> None:
    found = jain(values)
    assert math.isnan(found) if not any(values) else 1 / len(values) - 1e-9 <= found <= 1 + 1e-9


def test_jain_by_hand() -> None:
    assert jain([3, 3, 3]) == 1
    assert jain([0, 0, 5, 0]) == 0.25
    assert jain([1, 2, 3]) == pytest.approx(36 / (3 * 14))
    for nothing in ([], [0.0, 0.0], [math.inf, 1.0]):
        assert math.isnan(jain(nothing))


ROW = {
    "per_client": {
        "accuracy": {"0": 0.5, "1": 0.7, "2": 0.1, "3": 0.9},
        "attack_success": {"0": 0.2, "1": 0.4, "2": 1.0, "3": 0.0},
    },
    "weights": {"0": 0.4, "1": 0.3, "2": 0.2, "3": 0.1},
    "removed": {"1": 5, "2": 3},
}


def test_observed_by_hand() -> None:
    found = observed(ROW, [3, 2])
    assert found == {
        "adversaries": [2, 3],
        "accuracy_honest": pytest.approx(0.6),
        "accuracy_honest_worst10": 0.5,
        "accuracy_adversaries": pytest.approx(0.5),
        "attack_success": pytest.approx(0.3),
        "adversaries_weight": pytest.approx(0.3),
        "adversaries_removed": 1,
        "honest_removed": 1,
    }
    assert observed(ROW, []) == {}
    assert observed({}, [1]) == {"adversaries": [1]}


def test_where_all_lie_nobody_is_honest() -> None:
    found = observed(ROW, range(4))
    assert not found.keys() & {"accuracy_honest", "accuracy_honest_worst10", "attack_success"}
    assert found["accuracy_adversaries"] == pytest.approx(0.55)
    assert (found["adversaries_removed"], found["honest_removed"]) == (2, 0)


def test_the_worst_honest_tenth_is_among_the_honest() -> None:
    accuracy = {str(client): 0.01 * client for client in range(25)}
    found = observed({"per_client": {"accuracy": accuracy}}, [0, 1, 2, 3, 4])
    assert found["accuracy_honest_worst10"] == pytest.approx((0.05 + 0.06) / 2)
    assert found["accuracy_honest_worst10"] == worst_share([0.01 * client for client in range(5, 25)])


def test_detection_by_hand() -> None:
    assert detection({1: 4, 2: 10, 7: 12}, [1, 2, 3], 10) == {"tpr": 2 / 3, "fpr": 1 / 7, "rounds": 7.0}
    nobody = detection({}, [1, 2], 10)
    assert (nobody["tpr"], nobody["fpr"]) == (0, 0)
    assert math.isnan(nobody["rounds"])
    peace = detection({4: 1}, [], 10)
    assert math.isnan(peace["tpr"])
    assert peace["fpr"] == 0.1
    assert math.isnan(detection({0: 1}, [0, 1], 2)["fpr"])


def test_the_honest_and_the_others() -> None:
    assert split({"0": 1.0, "1": 2.0, "2": 3.0}, {"1"}) == ([1.0, 3.0], [2.0])
    assert mean([1.0, 3.0]) == 2
    assert math.isnan(mean([]))
