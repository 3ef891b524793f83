"""The defences: rules and strategies against worked numbers, what a few lies can do to them, and ByzFL's rules."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import world
from fedshare import seeds
from fedshare.client import Training
from fedshare.errors import UserError
from fedshare.machine.threads import threads
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.rounds import Schedule, run_server
from fedshare.rules import (
    Bulyan,
    ByzFL,
    CentredClipping,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NearestNeighbourMixing,
    Rule,
    TrimmedMean,
)
from fedshare.rules.matrix import moved, squared_distances, updates_of
from fedshare.simulation import Simulation
from fedshare.state import State, digests
from fedshare.strategies.cgsv import CGSV
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.fltrust import FLTrust
from fedshare.strategies.foolsgold import FoolsGold
from fedshare.strategies.qffl import QFFL
from fedshare.strategies.rffl import RFFL
from fedshare.strategies.robust import Robust
from fedshare.strategy import Strategy
from fedshare.training.private.privacy import Privacy
from optional import extra, needs

RULES: dict[str, Rule] = {
    "median": Median(),
    "trimmed mean": TrimmedMean(2),
    "krum": Krum(2),
    "multi-krum": MultiKrum(2),
    "bulyan": Bulyan(2),
    "geometric median": GeometricMedian(),
    "centred clipping": CentredClipping(2.0, iterations=3),
    "mixing, median": NearestNeighbourMixing(Median(), 2),
    "mixing, krum": NearestNeighbourMixing(Krum(2), 2),
}
each_rule = pytest.mark.parametrize("name", RULES)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1)


def drawn(clients: int = 10, size: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(clients, size, generator=seeds.generator(seed, "updates")) + 1


def made(rule: Rule, updates: Tensor, centre: Tensor | None = None) -> Tensor:
    return rule(updates, torch.zeros_like(updates[0]) if centre is None else centre)[0]


def play(
    strategy: Strategy, state: State, changes: dict[int, Sequence[float]], round: int = 1, **metrics: Any
) -> State:
    """The server's memory after a round in which these clients changed the model by so much."""
    uploads = {}
    for client, change in changes.items():
        params = {"w": state["params"]["w"] + torch.tensor(change, dtype=torch.float32)}
        told = {name: values[client] for name, values in metrics.items() if client in values}
        uploads[client] = Payload({"params": params}, {"examples": 10.0 + client} | told)
    return strategy.aggregate(state, round, uploads)


def begun(strategy: Strategy, *values: float) -> State:
    return strategy.init({"w": torch.tensor(values, dtype=torch.float32)}, world.CLIENTS)


# Rules


def test_median_and_trimmed_mean_by_hand() -> None:
    updates = torch.tensor([[0.0, 9], [1, 7], [5, -100], [100, 8]])
    assert made(Median(), updates).tolist() == [3.0, 7.5]
    assert made(Median(), updates[:3]).tolist() == [1.0, 7.0]
    assert made(TrimmedMean(1), updates).tolist() == [3.0, 7.5]
    assert made(TrimmedMean(0), updates).tolist() == [26.5, -19.0]
    assert TrimmedMean(1)(updates, updates[0])[1] is None


def test_krum_by_hand() -> None:
    # Two nearest others each: 1 + 9, 1 + 4, 4 + 9, 1 + 49, 1 + 64.
    updates = column(0, 1, 3, 10, 11)
    aggregate, shares = Krum(1)(updates, updates[0])
    assert aggregate.tolist() == [1.0]
    assert shares.tolist() == [0, 1, 0, 0, 0]
    assert made(MultiKrum(1, m=2), updates).tolist() == [0.5]
    assert made(MultiKrum(1), updates).tolist() == [3.5]
    assert made(MultiKrum(1, m=99), updates).tolist() == [5.0]
    assert made(Krum(1), column(7, 7, 7, 1, 2)).tolist() == [7.0]


def test_bulyan_by_hand() -> None:
    # Krum takes 2, 3.5, 1, 0 and 5; the three nearest their median 2 are 2, 1 and 3.5.
    assert made(Bulyan(1), column(0, 1, 2, 3.5, 5, 100, -100)).tolist() == pytest.approx([13 / 6])


def test_geometric_median_by_hand() -> None:
    corner = (3 - math.sqrt(3)) / 6  # from there the three corners are 120 degrees apart
    aggregate, shares = GeometricMedian(iterations=200)(torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.zeros(2))
    assert aggregate.tolist() == pytest.approx([corner, corner], abs=1e-4)
    assert shares is not None
    assert float(shares.sum()) == pytest.approx(1)
    assert shares[0] > shares[1]
    assert made(GeometricMedian(), column(0, 1, 1000)).tolist() == pytest.approx([1], abs=1e-3)
    assert made(GeometricMedian(), column(5, 5)).tolist() == [5]


def test_centred_clipping_by_hand() -> None:
    updates = torch.tensor([[3.0, 4], [0.5, 0]])
    once = made(CentredClipping(1.0), updates)
    assert once.tolist() == pytest.approx([0.55, 0.4])
    assert made(CentredClipping(1.0), updates, updates[0]).tolist() == pytest.approx(
        [3 - 0.5 * 2.5 / math.hypot(2.5, 4), 4 - 0.5 * 4 / math.hypot(2.5, 4)]
    )
    torch.testing.assert_close(made(CentredClipping(1.0, 2), updates), made(CentredClipping(1.0), updates, once))
    torch.testing.assert_close(made(CentredClipping(99.0), updates), updates.mean(0))


def test_mixing_by_hand() -> None:
    # The pairs are 0 and 1, 1 and 0, 10 and 1: their means 0.5, 0.5 and 5.5.
    updates = column(0, 1, 10)
    assert made(NearestNeighbourMixing(Median(), 1), updates).tolist() == [0.5]
    aggregate, shares = NearestNeighbourMixing(MultiKrum(0, m=3), 1)(updates, updates[0])
    assert aggregate.tolist() == pytest.approx([6.5 / 3])
    assert shares.tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])
    assert NearestNeighbourMixing(Median(), 1)(updates, updates[0])[1] is None


def test_distances_do_not_cancel() -> None:
    near = torch.full((2, 20_000), 1e4)
    near[1, 0] += 2**-9
    assert squared_distances(near)[0, 1] == 2**-18
    far = squared_distances(torch.tensor([[1e30, 0], [0, 0], [0, 1]]))
    assert far[0, 1] == pytest.approx(1e60, rel=1e-6)
    assert far[1, 2] == far[2, 1] == 1
    assert far.diagonal().tolist() == [0, 0, 0]


@each_rule
def test_a_rule_knows_no_order_and_no_origin(name: str) -> None:
    updates, rule = drawn(), RULES[name]
    aggregate, shares = rule(updates, updates[0] * 0)
    order = torch.randperm(len(updates), generator=seeds.generator(1))
    other, moved_shares = rule(updates[order], updates[0] * 0)
    torch.testing.assert_close(other, aggregate)
    if shares is not None:
        assert moved_shares is not None
        torch.testing.assert_close(moved_shares, shares[order])
        assert float(shares.sum()) == pytest.approx(1)
        torch.testing.assert_close((shares @ updates.double()).float(), aggregate)
    shift = torch.full_like(updates[0], 3.0)
    torch.testing.assert_close(made(rule, updates + shift, shift), aggregate + shift, rtol=1e-4, atol=1e-5)
    assert torch.equal(made(rule, updates), aggregate), "twice the same"
    with threads(2):
        assert torch.equal(made(rule, updates), aggregate), "on two threads the same"


@each_rule
@pytest.mark.parametrize("lie", [1e6, -1e6, 1e30])
def test_two_lies_of_ten_move_it_no_farther_than_honest_ones_are(name: str, lie: float) -> None:
    updates = drawn()
    updates[[2, 7]] = lie
    honest = updates[[0, 1, 3, 4, 5, 6, 8, 9]]
    spread = squared_distances(honest).max().sqrt()
    aggregate = made(RULES[name], updates)
    # Clipping counts from its centre: each lie may pull it by the radius, in each iteration.
    assert (aggregate - honest.mean(0)).norm() < spread + 3 * 2.0
    assert updates.mean(0).norm() > 1e5


@each_rule
def test_two_that_lie_apart_or_just_outside_do_not_move_it_far(name: str) -> None:
    updates = drawn()
    honest = updates[[0, 1, 3, 4, 5, 6, 8, 9]]
    for lies in (column(1e6, -1e6), column(4, 4.001)):
        updates[[2, 7]] = lies.expand(2, updates.shape[1])
        assert (made(RULES[name], updates) - honest.mean(0)).norm() < 20


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (TrimmedMean, lambda n: (n - 1) // 2),
        (Krum, lambda n: (n - 3) // 2),
        (MultiKrum, lambda n: (n - 3) // 2),
        (Bulyan, lambda n: (n - 3) // 4),
        (lambda f: NearestNeighbourMixing(Median(), f), lambda n: n - 1),
    ],
)
def test_with_too_few_clients_it_withstands_as_many_as_it_can(rule: Any, most: Any) -> None:
    for n in range(1, 12):
        updates = drawn(n, 5)
        assert torch.equal(made(rule(99), updates), made(rule(max(0, most(n))), updates))


@each_rule
def test_of_one_client_it_is_the_update_and_of_equal_ones_each(name: str) -> None:
    one = drawn(1) / 100
    torch.testing.assert_close(made(RULES[name], one), one[0])
    torch.testing.assert_close(made(RULES[name], one.expand(10, -1)), one[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrimmedMean(-1), "f=-1: must be at least 0"),
        (lambda: Krum(-1), "f=-1: must be at least 0"),
        (lambda: MultiKrum(f=-2), "f=-2: must be at least 0"),
        (lambda: MultiKrum(m=0), "m=0: must be at least 1"),
        (lambda: Bulyan(-1), "f=-1: must be at least 0"),
        (lambda: NearestNeighbourMixing(Median(), -1), "f=-1: must be at least 0"),
        (lambda: GeometricMedian(smoothing=0.0), "smoothing=0.0: must be above 0"),
        (lambda: GeometricMedian(iterations=0), "iterations=0: must be at least 1"),
        (lambda: CentredClipping(radius=-1.0), "radius=-1.0: must be above 0"),
        (lambda: CentredClipping(radius=math.nan), "radius=nan: must be above 0"),
        (lambda: CentredClipping(iterations=0), "iterations=0: must be at least 1"),
        (lambda: FLTrust(root=-1), "root=-1: must be at least 0"),
        (lambda: FLTrust(alpha=0.0), "alpha=0.0: must be above 0"),
        (lambda: FoolsGold(kappa=0.0), "kappa=0.0: must be above 0"),
        (lambda: QFFL(q=-1.0), "q=-1.0: must be at least 0"),
        (lambda: QFFL(lr=0.0), "lr=0.0: must be above 0"),
        (lambda: CGSV(beta=0.0), "beta=0.0: must be above 0"),
        (lambda: CGSV(gamma=-1.0), "gamma=-1.0: must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


# Robust


def test_robust_is_fedavg_with_another_rule() -> None:
    strategy = Robust(rule=Krum(1))
    state = play(strategy, begun(strategy, 5, 5), {7: [0, 0], 3: [1, 1], 4: [1.5, 1.5], 9: [90, 0], 2: [0, 80]})
    assert state["params"]["w"].tolist() == [6, 6]
    assert strategy.report(state) == {"weights": {"2": 0, "3": 1, "4": 0, "7": 0, "9": 0}}
    strategy = Robust(rule=Median())
    state = play(strategy, begun(strategy, 5, 5), {0: [0, 0], 1: [1, 7], 2: [99, 8]})
    assert state["params"]["w"].tolist() == [6, 12]
    assert strategy.report(state) == {}


def test_clipping_remembers_the_last_aggregate_in_state() -> None:
    strategy = Robust(rule=CentredClipping(1.0))
    state = begun(strategy, 0)
    for expected in (1, 3, 6, 10, 14):  # the centre follows, by 1 a round, to where all updates are: 4
        state = play(strategy, state, {0: [4], 1: [4]})
        assert state["params"]["w"].tolist() == [expected]


def test_types_and_counters_survive() -> None:
    params = {
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "double": torch.zeros(1, 2, dtype=torch.float64),
    }
    models = [{"half": params["half"] + i, "count": torch.tensor(9), "double": params["double"] + i} for i in (1, 2, 3)]
    state = Robust(rule=Median()).aggregate(
        Robust(rule=Median()).init(params, 3), 1, {i: Payload({"params": model}) for i, model in enumerate(models)}
    )
    after = state["params"]
    assert after["half"].tolist() == [3, 3]
    assert after["double"].tolist() == [[2, 2]]
    assert after["count"] == 3
    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in params.items()}
    change = updates_of(models[:1], params)
    assert digests(moved(params, change[0]) | {"count": 0}) == digests(models[0] | {"count": 0})


# FLTrust


def test_fltrust_by_hand() -> None:
    strategy = FLTrust(root=4)
    # Cosines 0.6, -1 and 1; of length 2 those updates are (1.2, 1.6) and (2, 0).
    changes = {0: [3, 4], 1: [-1, 0], 2: [10, 0], 3: [0, 0], 4: [2, 0]}
    state = play(strategy, begun(strategy, 1, 1), changes)
    assert state["params"]["w"].tolist() == pytest.approx([1 + 2.72 / 1.6, 1 + 0.96 / 1.6])
    assert state["weights"] == pytest.approx({0: 0.375, 1: 0, 2: 0.625, 3: 0, 4: 0})
    assert list(strategy.report(state)["weights"]) == ["0", "1", "2", "3", "4"]
    lies = play(strategy, begun(strategy, 1, 1), changes | {0: [3e6, 4e6], 2: [1e30, 0]})
    torch.testing.assert_close(lies["params"], state["params"])
    half = play(FLTrust(root=4, alpha=0.5), begun(strategy, 1, 1), changes)
    assert half["params"]["w"].tolist() == pytest.approx([1.85, 1.3])


def test_fltrust_stays_where_the_root_is_absent_or_trusts_nobody() -> None:
    strategy = FLTrust(root=0)
    state = play(strategy, begun(strategy, 1, 1), {0: [1, 0], 1: [1, 1]})
    for changes, weights in (
        ({1: [1, 0], 2: [1, 0]}, {}),
        ({0: [1, 0]}, {0: 0}),
        ({0: [1, 0], 1: [-1, 0]}, {0: 0, 1: 0}),
        ({0: [0, 0], 1: [1, 0]}, {0: 0, 1: 0}),
    ):
        after = play(strategy, state, changes)
        assert digests(after["params"]) == digests(state["params"])
        assert after["weights"] == weights


# FoolsGold


def test_foolsgold_by_hand() -> None:
    strategy = FoolsGold()
    # Two are one, a third is like them by 0.7071, and pardoned by as much to 0.5: the logit of 0.5 is 0, and 0.5 more.
    changes = {0: [2, 0, 0], 1: [7, 0, 0], 2: [1, 1, 0], 3: [0, 0, 3]}
    state = play(strategy, begun(strategy, 0, 0, 0), changes)
    assert state["weights"] == pytest.approx({0: 0, 1: 0, 2: 1 / 3, 3: 2 / 3})
    assert state["params"]["w"].tolist() == pytest.approx([1 / 3, 1 / 3, 2])
    assert strategy.report(state)["weights"]["3"] == pytest.approx(2 / 3)
    sharper = play(FoolsGold(kappa=2), begun(strategy, 0, 0, 0), changes)
    assert sharper["weights"] == pytest.approx({0: 0, 1: 0, 2: 1 / 2, 3: 1 / 2})


def test_foolsgold_compares_histories_of_all_who_ever_came() -> None:
    strategy = FoolsGold()
    state = play(strategy, begun(strategy, 0, 0), {0: [1, 0], 1: [0, 1]})
    assert state["weights"] == {0: 0.5, 1: 0.5}
    state = play(strategy, state, {0: [1, 2], 2: [0, 5]})
    assert {client: history.tolist() for client, history in state["histories"].items()} == {
        0: [2, 2],
        1: [0, 1],
        2: [0, 5],
    }
    assert state["weights"] == {0: 1, 2: 0}, "2 is like 1, who is absent"


def test_foolsgold_remembers_sums_beyond_float32() -> None:
    strategy = FoolsGold()
    state = begun(strategy, 0, 0)
    for _ in range(3):
        state = play(strategy, state, {0: [1, 0], 1: [0, 1], 2: [3e38, 3e38], 3: [3e38, 3e38]})
        assert state["weights"] == {0: 0.5, 1: 0.5, 2: 0, 3: 0}


def test_foolsgold_stays_where_all_are_alike_and_lets_one_alone_be() -> None:
    strategy = FoolsGold()
    state = begun(strategy, 1, 1)
    change = [0.3, 0.1]
    alike = play(strategy, state, {i: [(i + 1) * c for c in change] for i in range(4)})
    assert digests(alike["params"]) == digests(state["params"])
    assert alike["weights"] == dict.fromkeys(range(4), 0)
    assert play(strategy, state, {5: [1, 2]})["params"]["w"].tolist() == [2, 3]
    assert play(strategy, state, {5: [0, 0], 6: [1, 0]})["weights"] == {5: 0.5, 6: 0.5}


# q-FFL


def test_qffl_by_hand() -> None:
    strategy = QFFL(q=1, lr=0.5)
    # L is 2, the paper's updates -2 and 2, with losses -4 and 2; h is 4 + 2 * 2 and 4 + 2 * 1.
    state = play(strategy, begun(strategy, 0), {0: [1], 1: [-1]}, loss_before={0: 2.0, 1: 1.0})
    assert state["params"]["w"].tolist() == pytest.approx([2 / 14])
    assert strategy.report(state)["weights"] == pytest.approx({"0": 2 / 3, "1": 1 / 3})


def test_qffl_without_q_is_the_mean_and_with_much_the_worst() -> None:
    changes = {i: row.tolist() for i, row in enumerate(drawn(4, 6))}
    losses = {0: 0.3, 1: 2.0, 2: 0.0, 3: 1.0}
    state = begun(FedAvg(), *range(6))
    plain = play(FedAvg(weighted=False), state, changes)["params"]
    torch.testing.assert_close(play(QFFL(q=0), state, changes, loss_before=losses)["params"], plain)
    much = play(QFFL(q=200), state, changes, loss_before=losses)
    assert much["weights"][1] == pytest.approx(1)


@pytest.mark.parametrize(
    "losses",
    [{0: 1e299, 1: 1.0}, {0: 9e299, 1: 0.0}, {0: -5.0, 1: 1.0}, {0: 1.0}, {}, {0: 0.0, 1: 0.0}],
)
@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 50.0])
def test_qffl_stays_finite_whatever_is_told(losses: dict[int, float], q: float) -> None:
    state = play(QFFL(q=q), begun(QFFL(), 0), {0: [1], 1: [-1]}, loss_before=losses)
    assert -1 <= float(state["params"]["w"]) <= 1


def test_qffl_tells_the_loss_of_the_model_it_got() -> None:
    training = Training(optimizer=world.sgd, epochs=2, batch_size=4, evaluation_batch_size=5)
    population = world.build("qffl", training=training)
    plain = world.build("fedavg", training=training)
    client, other = (one.client(1, {}) for one in (population, plain))
    for one in (client, other):
        one.load(one.initial)
    with torch.no_grad():
        expected = float(F.cross_entropy(client.model(client.train_examples.x), client.train_examples.y))
    with seeds.scope("dropout"):
        upload = population.strategy.train(client, 1, Payload())
    with seeds.scope("dropout"):
        same = FedAvg().train(other, 1, Payload())
    assert upload.metrics.pop("loss_before") == pytest.approx(expected, rel=1e-5)
    assert upload.metrics == same.metrics
    assert digests(upload.tensors) == digests(same.tensors), "looking changes no training"


@needs("opacus")
def test_qffl_does_not_tell_what_privacy_hides() -> None:
    privacy = Privacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-3)
    training = Training(optimizer=world.sgd, batch_size=4, sampling="poisson", privacy=privacy)
    client = world.build("qffl", training=training).client(0, {})
    client.load(client.initial)
    with pytest.raises(UserError, match=r"client\.privacy"):
        QFFL().train(client, 1, Payload())


# CGSV


def test_cgsv_is_rffl_with_other_rewards_and_without_removal() -> None:
    updates = {0: [1.0, 0.0], 1: [0.8, 0.6], 2: [-1.0, 0.1]}
    uploads = {i: Payload({"update": {"w": torch.tensor(u)}}, {"examples": 1 + i}) for i, u in updates.items()}
    ours, theirs = CGSV(alpha=0.5, beta=2.0), RFFL(alpha=0.5, own="cgsv", warmup=10**6)
    state, like = (strategy.init({"w": torch.zeros(2)}, world.CLIENTS) for strategy in (ours, theirs))
    for round in range(1, 13):
        state, like = (
            strategy.aggregate(memory, round, uploads) for strategy, memory in ((ours, state), (theirs, like))
        )
    assert state["reputation"] == like["reputation"]
    best = max(state["reputation"].values())
    for client, reputation in state["reputation"].items():
        assert state["earned"][client]["share"] == pytest.approx(math.tanh(2 * reputation) / math.tanh(2 * best))
        assert state["earned"][client]["share"] >= like["earned"][client]["share"]
    assert state["removed"] == {}
    assert RFFL(alpha=0.5, warmup=1).aggregate(like, 12, uploads)["removed"], "who would be removed there"


# In simulation


@pytest.mark.parametrize("name", ["robust", "fltrust", "foolsgold", "qffl", "cgsv"])
def test_a_run_reports_weights_and_learns(name: str) -> None:
    network = Simulation(lambda: world.build(name), 0)
    strategy = network.population.strategy
    schedule = Schedule(rounds=2, seed=0, max_examples=100)
    *_, done = run_server(strategy, network, world.begin(network.population), schedule)
    assert ("weights" in done.row) == (name != "robust"), "the median has none"
    downloads = {i: strategy.download(done.state, i, Purpose.TRAIN) for i in network.client_ids()}
    answers = network.exchange(Purpose.EVALUATE, 2, {i: d for i, d in downloads.items() if d is not None}).answers
    assert len(answers) == world.CLIENTS
    if name == "qffl":
        assert done.row["loss_before"] > 0


# ByzFL


# Its Krum counts a neighbour more than the paper: our f is its f - 1. Its MultiKrum averages n - f.
COUNTERPARTS: dict[str, tuple[Rule, ByzFL]] = {
    "median": (Median(), ByzFL("Median")),
    "trimmed mean": (TrimmedMean(2), ByzFL("TrMean", {"f": 2})),
    "krum": (Krum(2), ByzFL("Krum", {"f": 3})),
    "multi-krum": (MultiKrum(2, m=7), ByzFL("MultiKrum", {"f": 3})),
    "geometric median": (GeometricMedian(iterations=500), ByzFL("GeometricMedian", {"nu": 1e-6, "T": 500})),
    "centred clipping": (CentredClipping(2.0, 3), ByzFL("CenteredClipping", {"tau": 2.0, "L": 3})),
    "mixing": (NearestNeighbourMixing(TrimmedMean(2), 2), ByzFL("TrMean", {"f": 2}, "NNM", {"f": 2})),
    "too few": (TrimmedMean(9), ByzFL("TrMean", {"f": 9})),
}


@pytest.mark.parametrize("clients", [7, 10])
@pytest.mark.parametrize("lies", [0, 2])
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_rules_agree_with_byzfl(name: str, lies: int, clients: int) -> None:
    extra("byzfl")
    ours, theirs = COUNTERPARTS[name]
    if name == "multi-krum":
        ours = MultiKrum(2, m=clients - 3)
    for seed in range(3):
        updates = drawn(clients, seed=seed)
        updates[:lies] *= -20
        centre = updates[-1] / 2
        torch.testing.assert_close(made(theirs, updates, centre), made(ours, updates, centre), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before", [None, "Bucketing", "ARC"])
@pytest.mark.parametrize("name", ["CAF", "Meamed", "MDA"])
def test_more_of_byzfl_is_deterministic_and_bounded(name: str, before: str | None) -> None:
    extra("byzfl")
    rule = ByzFL(name, {"f": 2}, before, {"Bucketing": {"s": 2}, "ARC": {"f": 2}}.get(before or "", {}))
    updates = drawn()
    updates[:2] = 1e3
    given = updates.clone()
    aggregate = made(rule, updates)
    torch.rand(3)
    assert torch.equal(made(rule, updates), aggregate)
    assert torch.equal(updates, given)
    assert before == "Bucketing" or aggregate.norm() < 100


def test_byzfl_says_what_it_does_not_have() -> None:
    extra("byzfl")
    with pytest.raises(UserError, match=r"byzfl has no Mean; allowed: Average, CAF"):
        made(ByzFL("Mean"), drawn())
    with pytest.raises(UserError, match=r"byzfl TrMean: .*non-negative"):
        made(ByzFL("TrMean", {"f": -1}), drawn())
    with pytest.raises(UserError, match=r"byzfl Median: .*argument"):
        made(ByzFL("Median", {"tau": 1}), drawn())
