"""RFFL+: its reference, its votes, its test. What all strategies promise is in test_contract.py."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from fedshare import seeds
from fedshare.errors import UserError
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.state import State, digests
from fedshare.strategies.rffl_plus import RFFLPlus, clips, inner, scores
from fedshare.tensors import Tensors

WIDTH = 400
STRATEGY = RFFLPlus(warmup=1)


def begin(strategy: RFFLPlus = STRATEGY) -> State:
    return strategy.init({"w": torch.zeros(WIDTH)}, 5)


def sent(vectors: dict[int, torch.Tensor]) -> dict[int, Payload]:
    return {client: Payload({"update": {"w": vector}}, {"examples": 10.0}) for client, vector in vectors.items()}


def noise(*key: int) -> torch.Tensor:
    return torch.randn(WIDTH, generator=seeds.generator(0, "noise", *key))


def honest(round: int, clients: int = 8, alike: float = 0.7) -> dict[int, torch.Tensor]:
    """Updates with about that cosine between each two."""
    common = noise(round)
    own = {client: noise(round, client) for client in range(clients)}
    return {client: math.sqrt(alike) * common + math.sqrt(1 - alike) * vector for client, vector in own.items()}


def play(strategy: RFFLPlus, rounds: int, liars: object, clients: int = 8, alike: float = 0.7) -> list[State]:
    states = [begin(strategy)]
    for round in range(1, rounds + 1):
        updates = honest(round, clients, alike) | liars(round, states[-1])  # type: ignore[operator]
        asked = {client: update for client, update in updates.items() if client not in states[-1]["removed"]}
        states.append(strategy.aggregate(states[-1], round, sent(asked)))
    return states


def test_a_score_is_the_cosine_with_the_sum_of_the_others_by_hand() -> None:
    updates: list[Tensors] = [{"w": torch.tensor(v)} for v in ([1.0, 0.0], [0.0, 2.0], [3.0, 4.0])]
    found = scores(inner(updates), torch.ones(3).double(), torch.eye(3) > 0)
    assert found == pytest.approx([3 / math.sqrt(45), 4 / math.sqrt(32), (3 + 8) / (5 * math.sqrt(5))])


def test_a_reputation_does_not_feed_the_reference() -> None:
    updates = sent(honest(1))
    first = STRATEGY.aggregate(begin(), 1, updates)
    biased = begin() | {"reputation": {client: 1.0 if client == 0 else 1e-9 for client in range(8)}}
    second = STRATEGY.aggregate(biased, 1, updates)
    fresh = [(second["reputation"][c] - 0.95 * biased["reputation"][c]) / 0.05 for c in range(8)]
    assert fresh == pytest.approx([first["reputation"][c] for c in range(8)], abs=1e-6)


def test_longer_updates_are_clipped_to_the_median_length_and_nothing_stays_nothing() -> None:
    updates = {c: {"w": torch.tensor([length, 0.0])} for c, length in enumerate([0.0, 1.0, 2.0, 100.0])}
    assert list(clips(updates).values()) == [1.0, 1.0, 1.0, 0.02]
    assert clips({0: {"w": torch.zeros(2)}}) == {0: 1.0}


def test_rescaling_by_any_factor_changes_nothing_but_the_length_of_short_ones() -> None:
    updates = honest(1)
    plain = STRATEGY.aggregate(begin(), 1, sent(updates))
    huge = STRATEGY.aggregate(begin(), 1, sent(updates | {3: updates[3] * 1e6}))
    assert huge["reputation"] == pytest.approx(plain["reputation"], rel=1e-2)


def test_near_duplicates_share_one_vote() -> None:
    copies = dict.fromkeys(range(8, 12), noise(99))
    state = STRATEGY.aggregate(begin(), 1, sent(honest(1) | copies))
    alike = STRATEGY.alike(inner([{"w": v} for v in (honest(1) | copies).values()]), [True] * 12)
    assert alike.sum(dim=1).tolist() == [1] * 8 + [4] * 4
    assert sum(state["weights"][client] for client in copies) < 0.05


@pytest.mark.parametrize("copies", [4, 5, 8])
def test_identical_sybils_evict_nobody(copies: int) -> None:
    """Of RFFL's own limits this is the first: five identical sybils evict all ten honest clients there."""
    liars = list(range(10, 10 + copies))
    states = play(STRATEGY, 30, lambda round, state: dict.fromkeys(liars, noise(-round)), clients=10, alike=0.3)
    assert not states[-1]["removed"].keys() & set(range(10))
    assert sum(states[-1]["weights"].get(client, 0.0) for client in liars) < 0.1


@pytest.mark.parametrize("across", [0.0, 0.1])
def test_an_honest_minority_stays(across: float) -> None:
    """RFFL's second limit: three of ten whose updates are unlike the others' are evicted there."""

    def minority(round: int, state: State) -> dict[int, torch.Tensor]:
        common, other = noise(round), noise(round, 77)
        mixed = math.sqrt(across) * common + math.sqrt(1 - across) * other
        return {c: math.sqrt(0.7) * mixed + math.sqrt(0.3) * noise(round, c) for c in (7, 8, 9)}

    states = play(STRATEGY, 40, minority, clients=7)
    assert not states[-1]["removed"]
    assert all(states[-1]["reputation"][client] > 0 for client in (7, 8, 9))


LIES = {
    "opposite": lambda round, state: {8: -noise(round)},
    "random": lambda round, state: {8: noise(round, 8, 8)},
    "nothing": lambda round, state: {8: torch.zeros(WIDTH)},
    "echo": lambda round, state: {8: state["updates"][state["round"]]["w"]},
}


@pytest.mark.parametrize("lie", LIES)
def test_who_agrees_with_nobody_while_others_agree_is_removed_by_way_of_probation(lie: str) -> None:
    states = play(dataclasses.replace(STRATEGY, probation=5), 20, LIES[lie])
    assert states[-1]["removed"].keys() == {8}
    began = next(number for number, state in enumerate(states) if state["probation"])
    assert 3 <= began <= 8
    assert all(not state["earned"][8]["share"] for state in states[began:] if 8 in state["earned"])
    assert STRATEGY.download(states[-1], 8, Purpose.TRAIN) is None
    assert STRATEGY.download(states[-1], 8, Purpose.EVALUATE) == Payload()


def test_who_behaves_on_probation_comes_back() -> None:
    def once(round: int, state: State) -> dict[int, torch.Tensor]:
        good = math.sqrt(0.7) * noise(round) + math.sqrt(0.3) * noise(round, 8)
        return {8: -good if round <= 3 else good}

    states = play(dataclasses.replace(STRATEGY, probation=4), 12, once)
    assert [number for number, state in enumerate(states) if 8 in state["probation"]] == [3, 4, 5, 6]
    assert not states[-1]["removed"]
    assert [8 in state["weights"] for state in states[1:10]] == [True] * 3 + [False] * 4 + [True] * 2
    assert [states[n]["earned"][8]["share"] > 0 for n in range(3, 10)] == [False] * 5 + [True] * 2


def test_who_is_silent_on_probation_is_on_it_still() -> None:
    def hides(round: int, state: State) -> dict[int, torch.Tensor]:
        return {} if 8 in state["probation"] and round < 40 else {8: -noise(round)}

    states = play(STRATEGY, 60, hides)
    assert 8 in states[39]["probation"]
    assert states[-1]["removed"].keys() == {8}


def test_honest_clients_who_all_but_agree_do_not_hand_the_average_to_others() -> None:
    def two(round: int, state: State) -> dict[int, torch.Tensor]:
        common = noise(round, 55)
        return {client: common + 0.1 * noise(round, client) for client in (9, 10)}

    states = play(STRATEGY, 8, two, clients=9, alike=0.9999)
    assert sum(states[-1]["weights"][client] for client in range(9)) > 0.9


def test_where_nobody_has_any_reputation_everybody_gets_everything() -> None:
    apart = {0: noise(1), 1: -noise(1)}
    state = STRATEGY.aggregate(begin(), 1, sent(apart))
    assert set(state["reputation"].values()) == {0.0}
    assert [earned["share"] for earned in state["earned"].values()] == [1.0, 1.0]
    alone = STRATEGY.aggregate(begin(), 1, sent({0: noise(1)}))
    assert alone["earned"][0]["share"] == 1.0
    torch.testing.assert_close(alone["updates"][1]["w"], noise(1))


def test_who_left_while_reputations_were_high_is_nobodys_yardstick() -> None:
    state = play(STRATEGY, 3, lambda round, state: {}, alike=0.9)[-1]
    for round in range(4, 40):
        updates = {client: update for client, update in honest(round, alike=0.3).items() if client}
        state = STRATEGY.aggregate(state, round, sent(updates))
    assert max(state["reputation"].values()) == state["reputation"][0]
    assert max(state["earned"][client]["share"] for client in range(1, 8)) == 1.0


def test_where_all_who_are_there_are_on_probation_nothing_happens() -> None:
    state = play(STRATEGY, 3, LIES["opposite"])[-1]
    assert state["probation"].keys() == {8}
    assert STRATEGY.aggregate(state, 4, sent({8: noise(4)})) is state


def test_of_a_clipped_update_only_what_is_left_is_taken_out_of_the_reward() -> None:
    updates = honest(1)
    state = STRATEGY.aggregate(begin(), 1, sent(updates | {3: 20 * updates[3]}))
    assert state["earned"][3]["weight"] == pytest.approx(state["weights"][3] / 20, rel=0.2)


def test_the_share_of_honest_clients_on_probation_is_bounded_at_the_very_rate_that_is_tolerated() -> None:
    """2,000 clients, bad in each round with chance `tolerance`: Ville's inequality, seen."""
    strategy, random = STRATEGY, seeds.numpy_generator(0, "ville")
    state, ever = begin(), set[int]()
    clients = list(range(2000))
    for round in range(1, 61):
        bad = set((random.random(2000) < strategy.tolerance).nonzero()[0].tolist())
        evidence, probation, removed = strategy.tried(state, round, clients, bad)
        ever |= probation.keys()
        assert not removed
        state = state | {"evidence": {c: e for c, e in evidence.items() if c not in ever}, "probation": {}}
        clients = [client for client in clients if client not in ever]
    assert 0.005 < len(ever) / 2000 <= strategy.risk


def test_scores_that_are_low_for_all_are_nobodys_fault() -> None:
    states = play(STRATEGY, 30, lambda round, state: {}, alike=0.0)
    assert not any(state["probation"] or state["removed"] for state in states)


def test_the_order_of_uploads_and_ids_means_nothing() -> None:
    updates = honest(1) | {8: -noise(1), 9: torch.zeros(WIDTH)}
    forth = STRATEGY.aggregate(begin(), 1, sent(updates))
    back = STRATEGY.aggregate(begin(), 1, sent(dict(reversed(updates.items()))))
    assert digests(forth) == digests(back)
    renamed = STRATEGY.aggregate(begin(), 1, sent({9 - client: update for client, update in updates.items()}))
    for client in updates:
        assert renamed["reputation"][9 - client] == pytest.approx(forth["reputation"][client], abs=1e-9)


def test_rewards_are_nested_by_reputation() -> None:
    state = play(STRATEGY, 3, lambda round, state: {})[-1]
    sizes = {c: STRATEGY.download(state, c, Purpose.TRAIN) for c in state["reputation"]}
    ranked = sorted(state["reputation"], key=lambda client: state["reputation"][client])
    assert all(sizes[a].nbytes <= sizes[b].nbytes for a, b in pairwise(ranked))  # type: ignore[union-attr]
    assert state["earned"][ranked[-1]]["share"] == 1.0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"duplicate": 1.0}, "duplicate=1.0: must be above 0 and below 1"),
        ({"risk": 0.0}, "risk=0.0: must be above 0 and below 1"),
        ({"tolerance": 0.95}, "tolerance=0.95: must be below 0.9"),
        ({"spread": 0.0}, "spread=0.0: must be above 0"),
        ({"probation": 0}, "probation=0: must be at least 1"),
        ({"alpha": 2.0}, "alpha=2.0: must be from 0 to 1"),
    ],
)
def test_bad_hyperparameters(keys: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RFFLPlus(**keys)  # type: ignore[arg-type]
