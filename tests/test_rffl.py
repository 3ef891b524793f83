"""RFFL against a round worked out by hand, what must hold whatever the numbers, and the limits it is known to have."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import world
from fedshare import seeds
from fedshare.attacks.liar import Liars
from fedshare.attacks.lies import SignFlip
from fedshare.errors import UserError
from fedshare.forms import masks, sparse
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.state import State, digests
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.reputation import reward
from fedshare.strategies.rffl import RFFL
from fedshare.tensors import Tensors, cosine, zeros_like

NEVER = 10**6  # a warm-up in which nobody is removed


def upload(update: Tensors, examples: float = 600) -> Payload:
    return Payload({"update": update}, {"examples": examples})


def vector(values: Sequence[float] | Tensor) -> Tensors:
    return {"w": torch.as_tensor(values, dtype=torch.float32)}


def play(strategy: RFFL, updates: dict[int, Tensors], rounds: int, examples: dict[int, float] | None = None) -> State:
    """The server's memory after so many rounds, in each of which everyone who is left sends the same."""
    state = strategy.init(zeros_like(next(iter(updates.values()))), len(updates))
    for round in range(1, rounds + 1):
        uploads = {
            client: upload(update, (examples or {}).get(client, 600))
            for client, update in updates.items()
            if client not in state["removed"]
        }
        state = strategy.aggregate(state, round, uploads)
    return state


def correlated(cosines: Tensor) -> dict[int, Tensors]:
    """Updates of norm 1 with these cosines between them."""
    rows = torch.linalg.cholesky(cosines.double() + 1e-9 * torch.eye(len(cosines)))
    return {client: vector(row) for client, row in enumerate(rows)}


def groups(sizes: Sequence[int], within: Sequence[float], across: float) -> Tensor:
    cosines = torch.full((sum(sizes), sum(sizes)), float(across))
    start = 0
    for size, inside in zip(sizes, within, strict=True):
        cosines[start : start + size, start : start + size] = inside
        start += size
    return cosines.fill_diagonal_(1.0)


def random_updates(clients: int, seed: int = 0) -> dict[int, Tensors]:
    """Honest ones, that lean one way."""
    common = torch.randn(40, generator=seeds.generator(seed, "common"))
    return {
        client: {
            "a": (common + torch.randn(40, generator=seeds.generator(seed, client)))[:30].view(5, 6),
            "b": (common + torch.randn(40, generator=seeds.generator(seed, client)))[30:],
        }
        for client in range(clients)
    }


def test_a_round_by_hand() -> None:
    strategy = RFFL(gamma=5, alpha=0.5)
    state = strategy.init(vector([0, 0]), world.CLIENTS)
    # Norms 5 and 1: scaled to 5 both. Examples 1 and 3: the average is (3, 4) / 4 + 3 (5, 0) / 4 = (4.5, 1).
    state = strategy.aggregate(state, 1, {0: upload(vector([3, 4]), 1), 1: upload(vector([1, 0]), 3)})
    assert state["updates"][1]["w"].tolist() == pytest.approx([4.5, 1.0])
    # Cosines with it, whose norm is sqrt(21.25): (13.5 + 4) / (5 * 4.6098) = 0.7593 and 4.5 / 4.6098 = 0.9762.
    # Half the old, half the cosine: 0.125 + 0.3796 = 0.5046 and 0.375 + 0.4881 = 0.8631, of 1.3677 in all.
    assert state["reputation"] == pytest.approx({0: 0.36896, 1: 0.63104}, abs=1e-4)
    earned = {client: (one["weight"], one["share"]) for client, one in state["earned"].items()}
    assert earned[0] == pytest.approx((0.25, 0.58468), abs=1e-4)
    assert earned[1] == (0.75, 1.0)
    download = strategy.download(state, 0, Purpose.TRAIN)
    assert download is not None
    got = sparse.decode(download.tensors, vector([0, 0]))["w"].tolist()
    assert got == pytest.approx([4.5, 1.0]), "58 % of 2 are 1.17, rounded up to 2"
    assert strategy.report(state)["removed"] == {}


@pytest.mark.parametrize(
    "order", [[7, 8, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 8], [3, 7, 0, 4, 8, 1, 5, 2, 6]]
)
def test_it_does_not_matter_which_places_adversaries_have(order: list[int]) -> None:
    honest = random_updates(7)
    updates = honest | {7: {n: -t for n, t in honest[0].items()}, 8: random_updates(1, seed=9)[0]}
    strategy = RFFL()
    plain = play(strategy, updates, 14)
    # Client i of the plain run is called order[i].
    other = play(strategy, dict(sorted((order[i], update) for i, update in updates.items())), 14)
    assert {order[client]: round for client, round in plain["removed"].items()} == other["removed"]
    assert set(plain["removed"]) == {7, 8}
    for client, reputation in plain["reputation"].items():
        assert other["reputation"][order[client]] == pytest.approx(reputation)
        mine = strategy.download(plain, client, Purpose.TRAIN)
        theirs = strategy.download(other, order[client], Purpose.TRAIN)
        assert mine is not None
        assert theirs is not None
        like = honest[0]
        torch.testing.assert_close(sparse.decode(mine.tensors, like), sparse.decode(theirs.tensors, like))


def test_equal_uploads_earn_alike_and_everything() -> None:
    update = random_updates(1)[0]
    strategy = RFFL()
    state = play(strategy, dict.fromkeys(range(8), update), 12)
    assert state["reputation"] == pytest.approx(dict.fromkeys(range(8), 1 / 8))
    for client in range(8):
        assert state["earned"][client]["share"] == 1
        download = strategy.download(state, client, Purpose.TRAIN)
        assert download is not None
        assert digests(sparse.decode(download.tensors, update)) == digests(state["updates"][12])


@pytest.mark.parametrize("factor", [1e-39, 1e-6, 0.25, 3.7, 1e6])
def test_the_size_of_an_upload_changes_nothing(factor: float) -> None:
    updates = random_updates(6)
    plain = play(RFFL(), updates, 5)
    other = play(RFFL(), updates | {2: {name: factor * t for name, t in updates[2].items()}}, 5)
    assert other["reputation"] == pytest.approx(plain["reputation"], rel=1e-4)
    torch.testing.assert_close(other["updates"][5], plain["updates"][5], rtol=1e-3, atol=1e-5)


def test_updates_with_nothing_in_common_leave_reputations_as_they_are() -> None:
    examples = {0: 100.0, 1: 200.0, 2: 300.0, 3: 400.0}
    updates = {client: vector(torch.eye(4)[client]) for client in range(4)}
    state = play(RFFL(warmup=NEVER), updates, 50, examples)
    assert state["reputation"] == pytest.approx({client: n / 1000 for client, n in examples.items()})


@settings(max_examples=50)
@given(st.integers(2, 7), st.integers(0, 10**6), st.integers(1, 14), st.floats(0, 1), st.floats(0, 1))
def test_reputations_are_shares_and_who_is_removed_stays_so(
    n: int, seed: int, t: int, alpha: float, beta: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    updates = {client: vector(torch.randn(4, generator=random)) for client in range(n)}
    strategy = RFFL(alpha=alpha, beta=beta, warmup=3)
    state, before = strategy.init(vector(torch.zeros(4)), world.CLIENTS), dict[int, int]()
    for round in range(1, t + 1):
        state = strategy.aggregate(state, round, {client: upload(update) for client, update in updates.items()})
        assert math.fsum(state["reputation"].values()) == pytest.approx(1)
        assert all(value >= 0 for value in state["reputation"].values())
        assert before.items() <= state["removed"].items()
        assert not state["removed"].keys() & (state["reputation"].keys() | state["earned"].keys())
        assert all(strategy.download(state, client, Purpose.TRAIN) is None for client in state["removed"])
        assert min(state["removed"].values(), default=3) >= 3
        before = state["removed"]


def test_a_reward_is_the_largest_entries_and_more_of_them_with_more_reputation() -> None:
    update = random_updates(1)[0] | {"c": torch.tensor(2.0), "d": torch.tensor([1.0, -1.0, 1.0, 1.0])}
    last: Tensors = {name: torch.zeros_like(t) for name, t in update.items()}
    cosines = []
    for share in (0.0, 1e-6, 0.1, 0.29, 0.5, 0.73, 1.0):
        got = sparse.decode(reward(update, share), update)
        for name, tensor in got.items():
            kept = tensor != 0
            assert int(kept.sum()) == math.ceil(share * tensor.numel()), "none where nothing is earned"
            assert torch.equal(tensor[kept], update[name][kept])
            assert bool((kept | (last[name] == 0)).all()), "what less reputation gets is part of it"
            if bool(kept.any()) and not bool(kept.all()):
                assert update[name][kept].abs().min() >= update[name][~kept].abs().max()
        cosines.append(cosine(got, update))
        norms = [math.sqrt(sum(float(t.double().square().sum()) for t in some.values())) for some in (got, update)]
        assert cosines[-1] == pytest.approx(norms[0] / norms[1])
        last = got
    assert cosines == sorted(cosines)
    assert digests(last) == digests(update)
    assert sparse.decode(reward(update, 0.5), update)["d"].tolist() == [1, -1, 0, 0], "of equal ones the first"


@pytest.mark.parametrize("warmup", [1, 4, 10])
def test_one_who_says_the_opposite_goes_when_the_warm_up_is_over(warmup: int) -> None:
    update = random_updates(1)[0]
    updates = dict.fromkeys(range(5), update) | {5: {name: -t for name, t in update.items()}}
    strategy = RFFL(warmup=warmup, alpha=0.5)
    state = play(strategy, updates, 1)
    assert cosine(updates[5], state["updates"][1]) == pytest.approx(-1)
    assert play(strategy, updates, warmup - 1)["removed"] == {} if warmup > 1 else True
    assert play(strategy, updates, warmup + 3)["removed"] == {5: warmup}


def test_alpha_1_keeps_the_weights_of_fedavg() -> None:
    updates, examples = random_updates(5), {client: 100.0 + 50 * client for client in range(5)}
    state = play(RFFL(alpha=1, beta=0, gamma=1), updates, 12, examples)
    assert state["reputation"] == pytest.approx({client: n / 1000 for client, n in examples.items()})
    scaled = {
        client: {
            name: t / math.sqrt(sum(float(x.square().sum()) for x in update.values())) for name, t in update.items()
        }
        for client, update in updates.items()
    }
    uploads = {client: Payload({"params": scaled[client]}, {"examples": examples[client]}) for client in updates}
    torch.testing.assert_close(state["updates"][12], FedAvg().aggregate({}, 1, uploads)["params"])


@pytest.mark.parametrize("rho", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_agreement_of_equally_alike_updates(n: int, rho: float) -> None:
    updates = correlated(groups([n], [rho], 0))
    state = play(RFFL(alpha=0), updates, 1)
    for update in updates.values():
        assert cosine(update, state["updates"][1]) == pytest.approx(math.sqrt((1 + (n - 1) * rho) / n), abs=1e-4)


def test_where_nobody_present_has_any_reputation_they_count_alike() -> None:
    updates = {0: vector([1, 0]), 1: vector([1, 0]), 2: vector([-1, 0])}
    strategy = RFFL(alpha=0, warmup=NEVER)
    state = play(strategy, updates, 2)
    assert state["reputation"][2] == 0
    state = strategy.aggregate(state, 3, {2: upload(updates[2])})
    assert math.fsum(state["reputation"].values()) == pytest.approx(1)
    nothing = play(RFFL(alpha=0, warmup=NEVER), {0: vector([1, 0]), 1: vector([-1, 0])}, 1)
    assert nothing["reputation"] == {0: 0.5, 1: 0.5}
    assert play(RFFL(beta=1, warmup=1), dict.fromkeys(range(22), vector([1, 2])), 3)["reputation"]


# Limits: that these hold is no merit.


def test_limit_four_sybils_stay_and_five_drive_out_ten_honest_clients() -> None:
    removed = {n: play(RFFL(), correlated(groups([10, n], [0.3, 1.0], 0.0)), 60)["removed"] for n in (3, 4, 5)}
    assert set(removed[3]) == {10, 11, 12}
    assert removed[4] == {}
    assert set(removed[5]) == set(range(10))


def test_limit_an_honest_minority_that_differs_is_driven_out() -> None:
    for across, expected in ((0.05, {7, 8, 9}), (0.1, {7, 8, 9}), (0.3, set())):
        assert set(play(RFFL(), correlated(groups([7, 3], [0.7, 0.7], across)), 60)["removed"]) == expected


def test_limit_a_hundredfold_update_is_made_harmless_and_so_its_sender_stays() -> None:
    updates = random_updates(6)
    assert play(RFFL(), updates | {0: {name: 100 * t for name, t in updates[0].items()}}, 30)["removed"] == {}


# The client's half


@pytest.mark.parametrize("own", ["paper", "code", "cgsv"])
def test_what_becomes_of_a_clients_own_update(own: str) -> None:
    strategy = RFFL(own=own)
    network = Simulation(lambda: world.build("rffl"), 0)
    scratch = network.population.scratch
    start = scratch.initial
    client = network.population.client(0, {})
    strategy.apply(client, Payload())
    assert digests(client.params()) == digests(start)
    sent = strategy.train(client, 1, Payload()).tensors["update"]
    parameters = dict(client.model.named_parameters())
    assert math.sqrt(sum(float(t.double().square().sum()) for t in sent.values())) == pytest.approx(0.5)
    assert not any(bool(tensor.any()) for name, tensor in sent.items() if name not in parameters)

    given = {name: torch.full_like(t, 0.01) for name, t in sent.items()}
    groups = sparse.encode(given, {name: torch.ones_like(t, dtype=torch.bool) for name, t in given.items()})
    strategy.apply(client, Payload(groups, {"round": 1, "weight": 0.25}))
    kept = {"paper": 0.75, "code": 1.0, "cgsv": 0.0}[own]
    for name in parameters:
        expected = start[name] + kept * sent[name] + 0.01
        torch.testing.assert_close(client.params()[name], expected)
    strategy.apply(client, Payload(groups, {"round": 7, "weight": 0.25}))
    for name in parameters:
        torch.testing.assert_close(client.params()[name], start[name] + sent[name])


def test_one_whose_upload_is_lost_goes_on_alone() -> None:
    strategy = RFFL()
    network = Simulation(lambda: world.build("rffl"), 0)
    schedule = Schedule(rounds=2, seed=0, max_examples=100)
    lost = world.Altered(network, {3: lambda payload: Payload({}, payload.metrics)})
    start = network.population.scratch.initial
    done = list(run_server(strategy, lost, world.begin(network.population), schedule))
    assert [list(one.row["dropped"]) for one in done] == [["3"], ["3"]]
    one = network.population.client(3, network.memories.states[3])
    download = strategy.download(done[-1].state, 3, Purpose.TRAIN)
    assert download == Payload()
    strategy.apply(one, download)
    memory = network.memories.states[3]
    assert digests(one.params()) == digests({n: t + memory["update"][n] for n, t in memory["params"].items()})
    assert any(bool((memory["params"][name] != start[name]).any()) for name in start), "the first update counts"


def test_models_differ_and_bytes_go_by_reputation() -> None:
    strategy = RFFL()
    network = Simulation(lambda: world.build("rffl"), 0)
    schedule = Schedule(rounds=3, seed=0, max_examples=100)
    *_, done = run_server(strategy, network, world.begin(network.population), schedule)
    downloads = {client: strategy.download(done.state, client, Purpose.TRAIN) for client in network.client_ids()}
    sent = {client: download.nbytes for client, download in downloads.items() if download is not None}
    reputation = done.state["reputation"]
    best = max(reputation, key=lambda client: reputation[client])
    assert all(sent[client] <= sent[best] for client in sent)
    assert len(set(sent.values())) > 1
    found = set()
    for client in network.client_ids():
        one, download = network.population.client(client, network.memories.states[client]), downloads[client]
        assert download is not None
        strategy.apply(one, download)
        found.add(repr(digests(one.params())))
    assert len(found) == 5
    asked = {client: download for client, download in downloads.items() if download is not None}
    assert network.exchange(Purpose.EVALUATE, 3, asked).answers.keys() == sent.keys()


# Sparse tensors


@settings(max_examples=150)
@given(st.integers(0, 80), st.floats(0, 1), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_sparse_tensors_come_back_and_are_as_small_as_can_be(size: int, share: float, seed: int, kind: Any) -> None:
    random = torch.Generator().manual_seed(seed)
    tensor = {"w": torch.randn(2, size, generator=random).to(kind)}
    kept = {"w": torch.rand(2, size, generator=random) < share}
    groups = sparse.encode(tensor, kept)
    assert digests(sparse.decode(groups, tensor)) == digests({"w": torch.where(kept["w"], tensor["w"], 0)})
    count, width = int(kept["w"].sum()), tensor["w"].element_size()
    beside = min(masks.packed_size(2 * size), 4 * count)
    assert Payload(groups).nbytes == (0 if count == 0 else min(2 * size * width, count * width + beside))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gamma": 0.0}, "gamma=0.0: must be above 0"),
        ({"gamma": math.inf}, "gamma=inf"),
        ({"alpha": 1.5}, "alpha=1.5: must be from 0 to 1"),
        ({"beta": math.nan}, "beta=nan: must be from 0 to 1"),
        ({"warmup": 0}, "warmup=0: must be at least 1"),
        ({"own": "mine"}, "own=mine: must be paper, code, cgsv"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RFFL(**fields)


def test_who_is_removed_is_tested_and_sends_nothing() -> None:
    liars = Liars(SignFlip(adversaries=[1]), world.CLIENTS, 0)
    population = replace(world.build("rffl"), strategy=RFFL(warmup=1, alpha=0.0), liars=liars)
    strategy, schedule = population.strategy, Schedule(rounds=3, seed=0)
    with Simulation(lambda: population, population=population) as network:
        rows = [done.row for done in run_server(strategy, network, world.begin(population), schedule)]
    removed = [row["removed"] for row in rows]
    assert removed == [{"1": 1}] * 3
    assert [row["clients"] for row in rows] == [[0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 2, 3, 4]]
    assert all("1" in row["per_client"]["accuracy"] and not row["untested"] for row in rows)


def test_an_upload_of_which_most_is_zero_travels_sparse_and_is_counted_so() -> None:
    strategy = RFFL()
    update = {"w": torch.zeros(40, 30), "b": torch.arange(30.0)}
    update["w"][3, 5] = 2.0
    packed = strategy.form.encode(upload(update))
    assert packed.nbytes == 4 + 4 + 30 * 4
    assert packed.metrics == {"examples": 600}
    unpacked = strategy.form.decode(packed, {"update": update})
    assert digests(unpacked.tensors) == digests({"update": update})
    dense = upload({"w": torch.ones(3, 4)})
    assert strategy.form.encode(dense) is dense
    assert strategy.form.decode(dense, {"update": dense.tensors["update"]}) is dense


SPARSE = sparse.encode({"w": torch.arange(400.0) * (torch.arange(400) % 100 == 7)}, {"w": torch.arange(400) % 100 == 7})


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"other": {}}, "groups: has unknown other"),
        ({"values": 1}, "values is a int, not named tensors"),
        ({"values": {"v": torch.ones(4)}}, "values: has unknown v"),
        ({"values": {}}, "values: lacks w"),
        ({"values": {"w": [1.0]}}, "values: w is a list, not a dense tensor"),
        ({"values": {"w": torch.ones(4).double()}}, "values: w is torch.float64, not torch.float32"),
        ({"values": {"w": torch.ones(2, 2)}}, r"values: w has shape \[2, 2\], not one axis"),
        ({"values": {"w": torch.ones(3)}}, "values: w has 3 values for 4 places"),
        ({"indices": {}}, r"values: w has shape \[4\], not \[400\]"),
        ({"indices": {"w": torch.tensor([7, 107, 207, 400]).int()}}, "indices: w are not ascending from 0 to 399"),
        ({"indices": {"w": torch.tensor([-7, 107, 207, 307]).int()}}, "indices: w are not ascending from 0 to 399"),
        ({"indices": {"w": torch.tensor([7, 7, 207, 307]).int()}}, "indices: w are not ascending from 0 to 399"),
        ({"indices": {"w": torch.tensor([7, 107, 207, 307])}}, "indices: w is torch.int64, not torch.int32"),
        ({"bits": {"w": torch.zeros(50, dtype=torch.uint8)}}, "values: w has 4 values for 0 places"),
        ({"bits": {"w": torch.zeros(49, dtype=torch.uint8)}}, r"bits: w has shape \[49\], not \[50\]"),
    ],
)
def test_a_sparse_upload_that_nobody_packs_is_dropped_with_its_reason(groups: dict[str, Any], said: str) -> None:
    assert SPARSE.keys() == {"values", "indices"}
    strategy = RFFL()
    with pytest.raises(ValueError, match=said):
        strategy.form.decode(Payload(SPARSE | groups, {"examples": 600}), {"update": {"w": torch.zeros(400)}})
    network = Simulation(lambda: world.build("rffl"))
    altered = world.Altered(network, {2: lambda p: Payload(SPARSE | groups, p.metrics)})
    schedule = Schedule(rounds=1, seed=0, evaluate_every=0)
    state = world.begin(network.population)
    (done,) = run_server(strategy, altered, state, schedule)
    assert list(done.row["dropped"]) == ["2"]
    assert done.row["clients"] == [0, 1, 3, 4]


def test_a_client_whose_training_diverged_once_is_back_in_the_next_round() -> None:
    network = Simulation(lambda: world.build("rffl"))
    strategy, state = network.population.strategy, world.begin(network.population)
    state = list(run_server(strategy, network, state, Schedule(rounds=1, seed=0)))[-1].state
    kept = digests(network.memories.states[2])
    broken = network.population.client(2, dict(network.memories.states[2]))
    download = strategy.download(state, 2, Purpose.TRAIN)
    assert download is not None
    strategy.apply(broken, download)
    with torch.no_grad():
        next(iter(broken.model.parameters())).fill_(math.nan)
    lost = strategy.train(broken, 2, download)
    assert not all(tensor.isfinite().all() for tensor in lost.tensors["update"].values())
    assert digests(broken.state) == kept
    strategy.apply(broken, download)
    assert all(tensor.isfinite().all() for tensor in broken.params().values())


def test_running_statistics_that_somebody_sends_reach_nobody() -> None:
    network = Simulation(lambda: world.build("rffl"))
    strategy = network.population.strategy

    def poisoned(payload: Payload) -> Payload:
        update = strategy.form.decode(payload, {"update": network.population.scratch.initial}).tensors["update"]
        return Payload({"update": update | {"norm.running_var": torch.full((8,), -1e3)}}, payload.metrics)

    altered = world.Altered(network, {2: poisoned})
    state = world.begin(network.population)
    *_, done = run_server(strategy, altered, state, Schedule(rounds=2, seed=0))
    assert (done.state["updates"][2]["norm.running_var"] < 0).all()
    one = network.population.client(0, network.memories.states[0])
    download = strategy.download(done.state, 0, Purpose.TRAIN)
    assert download is not None
    strategy.apply(one, download)
    assert (one.params()["norm.running_var"] > 0).all()
