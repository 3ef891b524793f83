"""FedCAC against a round worked out by hand, and against what must hold whatever the numbers."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import world
from fedshare import seeds
from fedshare.client import Training
from fedshare.errors import UserError
from fedshare.experiments.config import build
from fedshare.experiments.config.compose import resolved
from fedshare.forms import masks
from fedshare.machine import threads
from fedshare.network import Purpose
from fedshare.payload import Payload, flaw
from fedshare.rounds import Round, Schedule, run_server
from fedshare.rounds.account import Account
from fedshare.rules import mixing
from fedshare.simulation import Population, Simulation
from fedshare.state import State, digests
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.fedcac import FedCAC, collaborators, critical_to, overlaps, threshold
from fedshare.strategies.local import Local
from fedshare.strategy import Strategy
from fedshare.tensors import Tensors
from fedshare.training.scratch import Scratch

INFINITE = float("inf")


def upload(params: Tensors, critical: Tensors, examples: float = 1) -> Payload:
    packed = {name: masks.pack(mask) for name, mask in critical.items()}
    return Payload({"params": params, "critical": packed}, {"examples": examples})


def model(strategy: FedCAC, state: State, client: int) -> Tensors:
    """What this client would use now."""
    download = strategy.download(state, client, Purpose.TRAIN)
    assert download is not None
    return download.tensors["params"]


def mask_of(where: Sequence[int], size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(where)] = True
    return mask


def drawn(clients: int, size: int, seed: int = 0, share: float = 0.4) -> dict[int, Payload]:
    """Uploads of random models, masks and numbers of examples."""
    uploads = {}
    for client in range(clients):
        random = seeds.generator(seed, "drawn", client)
        params = {"a": torch.randn(size, generator=random), "b": torch.randn(3, 5, generator=random)}
        critical = {
            name: masks.top(torch.rand(t.shape, generator=random), masks.count(share, t.numel()))
            for name, t in params.items()
        }
        uploads[client] = upload(params, critical, 1 + client)
    return uploads


# One round by hand


@dataclass
class Scripted:
    """A client whose training ends where the test says."""

    before: Tensors
    after: Tensors
    examples: int
    state: State = field(default_factory=dict)
    now: Tensors = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()

    def load(self, params: Tensors) -> None:
        assert params.keys() == self.before.keys()
        self.now = params

    def params(self) -> Tensors:
        return self.now

    def fit(self, round: int) -> dict[str, float]:
        self.now = self.after
        return {"examples": float(self.examples)}


def tensors(a: Sequence[float], b: Sequence[float]) -> Tensors:
    return {"a": torch.tensor(a, dtype=torch.float32), "b": torch.tensor(b, dtype=torch.float32)}


def test_a_round_by_hand() -> None:
    strategy = FedCAC(tau=0.5, beta=4)  # 2 of the 4 numbers of a are critical, and 1 of the 2 of b
    start = tensors([1, 1, 1, 1], [2, 2])
    clients: dict[int, Any] = {
        # change of a: 2 0.5 0 -1, times a: 6 0.75 0 0; of b: 0 2, times b: 0 8
        0: Scripted(start, tensors([3, 1.5, 1, 0], [2, 4]), examples=1),
        # change of a: 1 2 0 0.5, times a: 2 6 0 0.75; of b: 2 0, times b: 8 0
        1: Scripted(start, tensors([2, 3, 1, 1.5], [4, 2]), examples=1),
        # change of a: 0 0 1 2, times a: 0 0 2 6; of b: 0 -1, times b: 0 -1
        2: Scripted(start, tensors([1, 1, 2, 3], [2, 1]), examples=2),
    }
    state = strategy.init(start, world.CLIENTS)
    uploads = {}
    for i, client in clients.items():
        download = strategy.download(state, i, Purpose.TRAIN)
        assert download is not None
        strategy.apply(client, download)
        uploads[i] = strategy.train(client, 2, download)
    expected = {0: ([0, 1], [1]), 1: ([0, 1], [0]), 2: ([2, 3], [1])}
    for i, (of_a, of_b) in expected.items():
        critical = uploads[i].tensors["critical"]
        assert critical["a"].tolist() == [sum(2**position for position in of_a)], "bits"
        assert critical["b"].tolist() == [sum(2**position for position in of_b)]

    state = strategy.aggregate(state, 2, uploads)
    # 0 and 1 share two critical numbers, both in a; 0 and 2 one, in b; 1 and 2 none. k = 3.
    assert state["overlap"]["shared"].tolist() == [[3, 2, 1], [2, 3, 0], [1, 0, 3]]
    # The average is (2 + 1 + 0) / 3 = 1, the largest 2; half way to beta: 1 + 2/4 * (2 - 1) = 1.5.
    assert threshold(state["overlap"]["shared"], 2, beta=4) == Fraction(3, 2)
    assert state["collaborators"] == {0: [1], 1: [0], 2: []}
    # All, weighted 1/4, 1/4, 1/2: 0.75 + 0.5 + 0.5, 0.375 + 0.75 + 0.5, 0.25 + 0.25 + 1, 0 + 0.375 + 1.5.
    assert {name: t.tolist() for name, t in state["params"].items()} == {
        "a": [1.75, 1.625, 1.5, 1.875],
        "b": [2.5, 2.0],
    }
    # 0 and 1 have (3 + 2) / 2 and (1.5 + 3) / 2 where a is critical to them, (4 + 2) / 2 and (4 + 2) / 2 where b is.
    wanted = {
        0: tensors([2.5, 2.25, 1.5, 1.875], [2.5, 3]),
        1: tensors([2.5, 2.25, 1.5, 1.875], [3, 2]),
        2: tensors([1.75, 1.625, 2, 3], [2.5, 1]),  # what is critical to 2 is its own
    }
    for i, params in wanted.items():
        assert digests(model(strategy, state, i)) == digests(params)
    assert strategy.report(state) == {
        "overlap": {"clients": [0, 1, 2], "values": [[1, 0.6667, 0.3333], [0.6667, 1, 0], [0.3333, 0, 1]]},
        "collaborators": {"0": [1], "1": [0], "2": []},
        "overlap_mean": 1 / 3,
        "overlap_max": 2 / 3,
        "threshold": 0.5,
    }


# The oracles, in a whole run


class Idle(world.Net):
    """With parameters that do nothing: they stay 0 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(world.CLIENTS))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x) + 0 * self.idle.sum()
        return logits


def simulation(strategy: Strategy, net: type[nn.Module] = world.Net) -> Simulation:
    def population() -> Population:
        with seeds.scope(0, "model"):
            module = net()
        training = Training(optimizer=world.sgd, epochs=2, batch_size=4)
        return Population(strategy, Scratch(module), training, world.shares(), 0)

    return Simulation(population, 0)


def rounds(network: Simulation | world.Altered, strategy: Strategy, **schedule: Any) -> list[Round]:
    inner = network.inner if isinstance(network, world.Altered) else network
    state = strategy.init(inner.population.scratch.initial, inner.population.clients)
    plan = Schedule(**{"rounds": 3, "seed": 0, "max_examples": 100} | schedule)
    return list(run_server(strategy, network, state, plan))


MEASURED = ("accuracy", "loss", "per_client", "train_loss")


@pytest.mark.parametrize("participation", [{}, {"clients_per_round": 3}])
def test_tau_0_is_fedavg_to_the_bit(participation: dict[str, int]) -> None:
    fedcac = FedCAC(tau=0, refresh=True, local_buffers=False)
    ours = rounds(simulation(fedcac), fedcac, **participation)
    theirs = rounds(simulation(FedAvg()), FedAvg(), **participation)
    for mine, other in zip(ours, theirs, strict=True):
        assert {key: mine.row[key] for key in MEASURED} == {key: other.row[key] for key in MEASURED}
        for client in range(world.CLIENTS):
            assert digests(model(fedcac, mine.state, client)) == digests(other.state["params"])


def test_tau_0_moves_parameters_as_fedavg_does_where_buffers_stay_at_home() -> None:
    fedcac = FedCAC(tau=0)
    ours, theirs = rounds(simulation(fedcac), fedcac)[-1], rounds(simulation(FedAvg()), FedAvg())[-1]
    parameters = dict(world.Net().named_parameters())
    for client in range(world.CLIENTS):
        mine = model(fedcac, ours.state, client)
        assert all(torch.equal(mine[name], theirs.state["params"][name]) for name in parameters)


def clear(positions: Sequence[int]) -> Any:
    """Take some of the idle parameters out of an upload's mask."""

    def change(payload: Payload) -> Payload:
        mask = masks.unpack(payload.tensors["critical"]["idle"], world.CLIENTS)
        mask[list(positions)] = False
        critical = payload.tensors["critical"] | {"idle": masks.pack(mask)}
        return Payload(payload.tensors | {"critical": critical}, payload.metrics)

    return change


def test_tau_1_after_beta_is_standalone_training_to_the_bit() -> None:
    # With tau=1 all masks are full, hence all overlaps equal, and then all collaborate: see the next test. So that they
    # are not equal, some clients' masks lack a parameter that does nothing.
    fedcac = FedCAC(tau=1, beta=0.5)
    network = world.Altered(simulation(fedcac, Idle), {client: clear([client]) for client in range(2, world.CLIENTS)})
    alone = simulation(Local(), Idle)
    ours, theirs = rounds(network, fedcac), rounds(alone, Local())
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.state["collaborators"] == {client: [] for client in range(world.CLIENTS)}
        assert {key: mine.row[key] for key in MEASURED} == {key: other.row[key] for key in MEASURED}
    for client, memory in alone.memories.states.items():
        whole = model(fedcac, ours[-1].state, client) | network.inner.memories.states[client]["buffers"]
        assert digests(whole) == digests(memory["params"])


def test_tau_1_makes_all_masks_equal_and_everyone_collaborate() -> None:
    fedcac = FedCAC(tau=1, beta=0.5)
    last = rounds(simulation(fedcac), fedcac)[-1]
    everyone = set(range(world.CLIENTS))
    assert last.state["collaborators"] == {client: sorted(everyone - {client}) for client in everyone}


def test_one_client_alone_is_standalone_training_whatever_tau_and_beta() -> None:
    fedcac = FedCAC(tau=0.3, beta=7)
    uploads = {0: drawn(1, 50)[0]}
    state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 1, uploads)
    assert digests(model(fedcac, state, 0)) == digests(uploads[0].tensors["params"])


def test_after_round_1_nothing_is_left_of_the_start() -> None:
    class Linear(nn.Linear):
        def __init__(self) -> None:
            super().__init__(world.FEATURES, world.CLASSES)

    fedcac = FedCAC()
    network = simulation(fedcac, Linear)
    (done,) = rounds(network, fedcac, rounds=1)
    for client in range(world.CLIENTS):
        for name, tensor in model(fedcac, done.state, client).items():
            assert bool((tensor != network.population.scratch.initial[name]).all()), name


# The oracles, on the server


@pytest.mark.parametrize("beta", [0.5, 3, 100, INFINITE])
def test_equal_masks_and_sizes_are_fedavg_in_every_round(beta: float) -> None:
    fedcac = FedCAC(beta=beta)
    uploads = drawn(6, 37)
    critical = uploads[0].tensors["critical"]
    uploads = {
        client: Payload({"params": one.tensors["params"], "critical": critical}, {"examples": 7.0})
        for client, one in uploads.items()
    }
    for round in (1, 2, 3, 4, 101):
        state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), round, uploads)
        average = FedAvg().aggregate({}, round, uploads)["params"]
        for client in uploads:
            torch.testing.assert_close(model(fedcac, state, client), average)


def shared_of(values: Sequence[int], n: int, k: int) -> Tensor:
    """A symmetric matrix with these numbers above its diagonal."""
    shared = torch.zeros(n, n, dtype=torch.int64)
    shared[tuple(torch.triu_indices(n, n, 1))] = torch.tensor(values, dtype=torch.int64)
    return shared + shared.T + k * torch.eye(n, dtype=torch.int64)


@st.composite
def overlapping(draw: st.DrawFn, least: int = 2) -> Tensor:
    n, k = draw(st.integers(least, 7)), draw(st.integers(1, 2**40))
    pairs = n * (n - 1) // 2
    return shared_of(draw(st.lists(st.integers(0, k), min_size=pairs, max_size=pairs)), n, k)


@settings(max_examples=200)
@given(overlapping(3), st.integers(1, 50))
def test_at_beta_only_the_most_alike_collaborate_and_later_nobody(shared: Tensor, beta: int) -> None:
    different = ~torch.eye(len(shared), dtype=torch.bool)
    most = shared[different].max()
    assert torch.equal(collaborators(shared, beta, beta), (shared == most) & different)
    later = collaborators(shared, beta + 1, beta)
    assert torch.equal(later, different if bool((shared[different] == most).all()) else torch.zeros_like(different))


@settings(max_examples=100)
@given(st.integers(0, 2**53), st.integers(1, 1000), st.sampled_from([0.1, 0.5, 1, 30, 170, INFINITE]))
def test_two_clients_always_collaborate(common: int, round: int, beta: float) -> None:
    shared = shared_of([common], 2, 2**53)
    assert collaborators(shared, round, beta).tolist() == [[False, True], [True, False]]


def test_equal_overlaps_are_never_rounded_apart() -> None:
    for n in range(2, 30):
        for common in range(1, 30):
            shared = shared_of([common] * (n * (n - 1) // 2), n, 30)
            assert int(collaborators(shared, 3, 7).sum()) == n * (n - 1)


@settings(max_examples=200)
@given(overlapping(), st.sampled_from([1, 2.5, 10, 100, INFINITE]))
def test_collaborators_become_fewer(shared: Tensor, beta: float) -> None:
    sizes = [collaborators(shared, round, beta).sum(dim=1) for round in range(1, 15)]
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(sizes))
    assert int(collaborators(shared, 10**6, INFINITE).sum()) >= 2, "the threshold stays at the average"


@settings(max_examples=100)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**32))
def test_overlaps_count_what_masks_have_in_common(n: int, size: int, words: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    drawn = [
        {"a": torch.rand(size, generator=random) < 0.5, "b": torch.rand(2, 3, generator=random) < 0.3} for _ in range(n)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_WORDS", words)
        shared = overlaps([{name: masks.pack(mask) for name, mask in one.items()} for one in drawn])
    by_hand = [[sum(int((one[name] & two[name]).sum()) for name in one) for two in drawn] for one in drawn]
    assert shared.tolist() == by_hand
    assert torch.equal(shared, shared.T)


def test_disjoint_masks_have_nothing_in_common_and_random_ones_tau_of_k() -> None:
    halves = [masks.pack(mask_of(range(start, start + 50), 100)) for start in (0, 50)]
    assert masks.intersections(halves).tolist() == [[50, 0], [0, 50]]
    for tau in (0.1, 0.4, 0.5):
        some = [
            masks.pack(masks.top(torch.rand(20_000, generator=seeds.generator("mask", i)), masks.count(tau, 20_000)))
            for i in range(10)
        ]
        shared = masks.intersections(some)
        assert shared.diag().tolist() == [masks.count(tau, 20_000)] * 10
        average = threshold(shared, 1, INFINITE) / masks.count(tau, 20_000)
        assert abs(float(average) - tau) < 0.01


@settings(max_examples=200)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60), st.sampled_from([0, 0.1, 0.29, 0.3, 0.5, 0.9, 1]))
def test_exactly_so_many_are_critical_and_scale_does_not_matter(changes: list[int], tau: float) -> None:
    change = torch.tensor(changes, dtype=torch.float32)  # many are equal, and many 0
    after = 1 + torch.arange(len(changes), dtype=torch.float32) % 7
    mask = critical_to(after - change, after, tau)
    assert int(mask.sum()) == math.floor(Fraction(str(tau)) * len(changes))
    sensitivity = (change * after).abs().tolist()
    first = sorted(range(len(changes)), key=lambda position: (-sensitivity[position], position))
    assert sorted(first[: int(mask.sum())]) == mask.nonzero().flatten().tolist(), "of equal ones the first"
    for factor in (-3, 7, 2.0**-140, 2.0**40):
        if factor in (-3, 7):
            assert torch.equal(critical_to(after - factor * change, after, tau), mask)
        assert torch.equal(critical_to(factor * (after - change), factor * after, tau), mask)


def test_a_share_is_meant_as_it_is_written() -> None:
    assert [masks.count(share, 100) for share in (0.29, 0.57, 0.58)] == [29, 57, 58]
    assert math.floor(0.29 * 100) == 28


@pytest.mark.parametrize("width", [16, 2**15])
@pytest.mark.parametrize("round", [1, 3, 5])
def test_constants_tell_who_was_averaged(width: int, round: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "_WIDTH", width)  # several blocks, the last one not full
    fedcac = FedCAC(tau=0.4, beta=4)
    uploads = {
        client: Payload(
            {
                "params": {name: torch.full_like(t, 2.0**client) for name, t in one.tensors["params"].items()},
                "critical": one.tensors["critical"],
            },
            one.metrics,
        )
        for client, one in drawn(7, 83).items()
    }
    state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), round, uploads)
    everyone = sum(2.0**client * (1 + client) for client in uploads) / 28
    for client, one in uploads.items():
        together = [client, *state["collaborators"][client]]
        for name, tensor in model(fedcac, state, client).items():
            critical = masks.unpack(one.tensors["critical"][name], tensor.numel()).view(tensor.shape)
            assert (tensor[critical] * len(together)).unique().tolist() == [sum(2.0**other for other in together)]
            assert tensor[~critical].unique().tolist() == [pytest.approx(everyone)]
    if round == 1:
        assert any(0 < len(others) < 6 for others in state["collaborators"].values()), "else this test sees little"


def test_other_ids_change_nothing_else() -> None:
    fedcac = FedCAC(tau=0.4, beta=9)
    uploads = drawn(6, 61)
    order = [4, 2, 0, 5, 1, 3]
    start = fedcac.init(uploads[0].tensors["params"], world.CLIENTS)
    state = fedcac.aggregate(start, 2, uploads)
    other = fedcac.aggregate(start, 2, {order[client]: one for client, one in uploads.items()})
    for client in uploads:
        assert sorted(order[i] for i in state["collaborators"][client]) == other["collaborators"][order[client]]
        torch.testing.assert_close(model(fedcac, state, client), model(fedcac, other, order[client]))
    torch.testing.assert_close(state["params"], other["params"])


def test_what_is_not_critical_is_the_global_models_to_the_bit() -> None:
    fedcac = FedCAC(tau=0.4, beta=9)
    uploads = drawn(6, 61)
    state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 2, uploads)
    assert digests(state["params"]) == digests(FedAvg().aggregate({}, 2, uploads)["params"]), "weighted by examples"
    for client, one in uploads.items():
        for name, tensor in model(fedcac, state, client).items():
            other = ~masks.unpack(one.tensors["critical"][name], tensor.numel()).view(tensor.shape)
            assert digests({"rest": tensor[other]}) == digests({"rest": state["params"][name][other]})


def test_negative_zero_stays_negative_without_collaborators() -> None:
    fedcac = FedCAC(beta=1)
    params = [{"a": torch.tensor([-0.0, 5.0, 1.0, 2.0]) * (1 + client)} for client in range(3)]
    where = [[0, 1], [0, 1], [0, 2]]
    uploads = {client: upload(params[client], {"a": mask_of(where[client], 4)}) for client in range(3)}
    state = fedcac.aggregate(fedcac.init(params[0], world.CLIENTS), 2, uploads)
    assert state["collaborators"] == {0: [], 1: [], 2: []}
    assert math.copysign(1, float(model(fedcac, state, 1)["a"][0])) == -1


# Who is absent


def changed(uploads: dict[int, Payload], by: float) -> dict[int, Payload]:
    return {
        client: Payload(one.tensors | {"params": {n: t + by for n, t in one.tensors["params"].items()}}, one.metrics)
        for client, one in uploads.items()
    }


def test_who_is_absent_keeps_its_model_and_who_is_new_has_the_global_one() -> None:
    fedcac = FedCAC(tau=0.4, beta=9)
    uploads = drawn(6, 61)
    first = fedcac.aggregate(
        fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 1, {i: one for i, one in uploads.items() if i < 4}
    )
    kept = {client: digests(model(fedcac, first, client)) for client in range(4)}
    state = first
    for round in (2, 3, 4):
        state = fedcac.aggregate(state, round, changed({2: uploads[2], 3: uploads[3]}, round))
        assert [digests(model(fedcac, state, client)) for client in (0, 1)] == [kept[0], kept[1]]
        assert digests(model(fedcac, state, 3)) != kept[3]
        assert digests(model(fedcac, state, 5)) == digests(state["params"])
        assert state["collaborators"].keys() == {2, 3}
        assert list(state["former"]) == [1], "no global model is remembered that nobody has"
    assert not state["sent"]
    state = fedcac.aggregate(state, 5, changed(uploads, 5))
    assert not state["former"]


def test_the_absent_may_get_the_newest_global_model_around_what_is_critical_to_them() -> None:
    fedcac = FedCAC(tau=0.4, beta=9, refresh=True)
    uploads = drawn(4, 61)
    first = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 1, uploads)
    later = fedcac.aggregate(first, 2, changed({2: uploads[2], 3: uploads[3]}, 1))
    before, after = model(fedcac, first, 0)["a"], model(fedcac, later, 0)["a"]
    critical = masks.unpack(uploads[0].tensors["critical"]["a"], 61)
    assert torch.equal(after[critical], before[critical])
    assert torch.equal(after[~critical], later["params"]["a"][~critical])
    assert not later["former"]


def test_the_absent_collaborate_only_where_the_config_says_so() -> None:
    params = [{"a": torch.full((4,), 2.0**client)} for client in range(3)]
    where = [[0, 1], [0, 1], [2, 3]]
    uploads = {client: upload(params[client], {"a": mask_of(where[client], 4)}) for client in range(3)}
    for remember, wanted in ((False, [2]), (True, [1])):
        fedcac = FedCAC(beta=INFINITE, remember=remember)
        state = fedcac.aggregate(fedcac.init(params[0], world.CLIENTS), 1, uploads)
        assert sorted(state["sent"]) == ([0, 1, 2] if remember else [])
        state = fedcac.aggregate(state, 2, {client: uploads[client] for client in (0, 2)})
        assert state["collaborators"][0] == wanted, "2 is the only other one, or 1 is remembered and more alike"
        assert float(model(fedcac, state, 0)["a"][0]) == (1 + 2.0 ** wanted[0]) / 2
        assert state["params"]["a"].tolist() == [2.5] * 4, "the global model is that of who took part"


def test_bits_beyond_the_last_coordinate_mean_nothing() -> None:
    fedcac, uploads = FedCAC(tau=0.4, beta=9), drawn(4, 61)
    plain = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 2, uploads)
    for liar in (0, 3):
        bits = {name: mask.clone() for name, mask in uploads[liar].tensors["critical"].items()}
        bits["a"][-1] |= 0b11100000  # 61 coordinates are 7 bytes and 5 bits
        other = Payload(uploads[liar].tensors | {"critical": bits}, uploads[liar].metrics)
        state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 2, uploads | {liar: other})
        assert digests(state) == digests(plain)


class Diverging(FedCAC):
    """Client 2's fit of round 1 ends in NaN, in the model and in its running statistics."""

    def train(self, client: Any, round: int, download: Payload) -> Payload:
        fit = client.fit

        def diverge(number: int) -> dict[str, float]:
            metrics: dict[str, float] = fit(number)
            with torch.no_grad():
                for tensor in (*client.model.parameters(), client.model.seen):
                    tensor.fill_(torch.nan)
            return metrics

        if (client.id, round) == (2, 1):
            client.fit = diverge
        return super().train(client, round, download)


def test_one_diverged_fit_does_not_lock_a_client_out() -> None:
    strategy = Diverging()
    network = simulation(strategy)
    done = rounds(network, strategy)
    assert [list(one.row["dropped"]) for one in done] == [["2"], [], []]
    for state in network.memories.states.values():
        for tensor in state["buffers"].values():
            assert tensor.isfinite().all()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, "a view would hold the whole model in memory"


def test_where_nothing_is_shared_everyone_trains_alone() -> None:
    config = resolved(["strategy=fedcac", "peft.local=[*]", "model=mlp", "partition.clients=3", "client.epochs=1"])
    population = build.population_of(config)
    done = rounds(Simulation(lambda: population, 0), population.strategy, rounds=2, max_examples=2000)
    assert done[-1].row["dropped"] == {}
    assert done[-1].row["bytes_up"] == 0


def test_a_lying_mask_does_not_change_the_scale_of_the_report() -> None:
    fedcac, uploads = FedCAC(tau=0.4, beta=9), drawn(5, 61)
    full = {name: torch.full_like(mask, 255) for name, mask in uploads[2].tensors["critical"].items()}
    uploads[2] = Payload(uploads[2].tensors | {"critical": full}, uploads[2].metrics)
    state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 2, uploads)
    values = fedcac.report(state)["overlap"]["values"]
    assert [values[i][i] for i in (0, 1, 3, 4)] == [1, 1, 1, 1]


def test_a_change_too_small_for_float32_still_decides() -> None:
    before = torch.tensor([1e-8, -1e-8])
    assert critical_to(before, torch.ones(2), 0.5).tolist() == [False, True]


def test_a_beta_near_0_is_no_overflow() -> None:
    fedcac, uploads = FedCAC(beta=1e-308), drawn(4, 61)
    state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 30, uploads)
    assert fedcac.report(state)["threshold"] == 2
    assert not collaborators(shared_of([1, 2, 3], 3, 5), 30, 1e-300).any()


def test_what_is_remembered_holds_no_more_memory_than_it_needs() -> None:
    fedcac, uploads = FedCAC(), drawn(3, 61)
    message = torch.cat([*uploads[0].tensors["critical"].values(), torch.zeros(999).byte()])
    pieces = message.split([8, 2, 999])
    uploads[0] = Payload(uploads[0].tensors | {"critical": dict(zip("ab", pieces, strict=False))}, uploads[0].metrics)
    state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 1, uploads)
    for one in state["clients"].values():
        for tensor in (*one["critical"].values(), one["values"]):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


# Buffers, bytes, bad input


def test_buffers_stay_at_home_or_are_averaged_and_are_never_critical() -> None:
    for local in (True, False):
        fedcac = FedCAC(tau=1, local_buffers=local)
        network = simulation(fedcac)
        (done,) = rounds(network, fedcac, rounds=1)
        buffers = {"seen", "norm.running_mean", "norm.running_var"}
        population = network.population
        for client in range(world.CLIENTS):
            one = population.client(client, network.memories.states[client])
            download = fedcac.download(done.state, client, Purpose.TRAIN)
            assert download is not None
            fedcac.apply(one, download)
            used = one.params(sorted(buffers))
            remembered = network.memories.states[client].get("buffers")
            expected = remembered if local else {n: done.state["params"][n] for n in buffers}
            assert expected.keys() == buffers
            assert digests(used) == digests(expected)
            assert not any(int(done.state["clients"][client]["critical"][name].max()) for name in buffers)


def test_a_round_sends_models_up_with_a_bit_a_parameter_and_models_down() -> None:
    fedcac = FedCAC()
    network = simulation(fedcac)
    whole = network.population.scratch.initial
    state = fedcac.init(whole, world.CLIENTS)
    plan = Schedule(rounds=1, seed=0, max_examples=100)
    (done,) = run_server(fedcac, network, state, plan, account=Account())
    size, bits = sum(t.nbytes for t in whole.values()), sum(math.ceil(t.numel() / 8) for t in whole.values())
    assert done.row["bytes_up_by_group"] == {"critical": 5 * bits, "params": 5 * size}
    assert done.row["bytes_down_by_group"] == {"params": 5 * size}


def test_it_stands_on_a_partition_by_configuration_alone() -> None:
    overrides = ["strategy=fedcac", "peft=bias", "model=vit", "model.dim=16", "model.depth=2", "model.heads=2"]
    config = resolved([*overrides, "partition.clients=4", "client.epochs=1", "clients_per_round=null"])
    population = build.population_of(config)
    network = Simulation(lambda: population, 0)
    (done,) = rounds(network, population.strategy, rounds=1, max_examples=2000)
    shared = population.scratch.initial
    assert 0 < len(shared) < len(population.scratch.shapes)
    for one in done.state["clients"].values():
        assert one["critical"].keys() == shared.keys()
        assert len(one["values"]) == sum(tensor.numel() // 2 for tensor in shared.values())


def test_a_row_holds_overlaps_and_collaborators_as_json() -> None:
    fedcac = FedCAC()
    for done in rounds(simulation(fedcac), fedcac, clients_per_round=3):
        row = json.loads(json.dumps(done.row))
        took_part = row["clients"]
        assert row["overlap"]["clients"] == took_part
        assert [len(line) for line in row["overlap"]["values"]] == [3, 3, 3]
        assert row["collaborators"].keys() == set(map(str, took_part))
        assert row["overlap_mean"] <= row["threshold"] <= row["overlap_max"]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dense", [-1, 2])
def test_other_types_of_numbers_are_mixed_alike(kind: torch.dtype, dense: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(mixing, "_DENSE", dense)  # the matrix product, and the sums
    uploads = drawn(5, 61)
    models = [{name: (8 * t).round().to(kind) for name, t in one.tensors["params"].items()} for one in uploads.values()]
    bits = [one.tensors["critical"] for one in uploads.values()]
    sets = torch.eye(5, dtype=torch.bool) | (torch.arange(5)[:, None] % 2 == torch.arange(5) % 2)
    for row, (values, mask) in enumerate(zip(mixing.mix(models, sets, bits), bits, strict=True)):
        mean = {
            name: torch.stack([models[i][name] for i in sets[row].nonzero().flatten()]).double().mean(0).to(kind)
            for name in models[0]
        }
        mixed = mixing.overlay({name: torch.zeros_like(tensor) for name, tensor in mean.items()}, values, mask)
        for name, tensor in mean.items():
            where = masks.unpack(mask[name], tensor.numel()).view(tensor.shape)
            torch.testing.assert_close(mixed[name], tensor * where)


def test_the_bits_do_not_depend_on_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    fedcac, found = FedCAC(tau=0.4, beta=9), set()
    uploads = drawn(9, 20_000)
    for cores in (1, 2, 5):
        monkeypatch.setattr(threads, "cores", lambda cores=cores: cores)
        state = fedcac.aggregate(fedcac.init(uploads[0].tensors["params"], world.CLIENTS), 2, uploads)
        found.add(repr(digests(state)))
    assert len(found) == 1


def test_a_mask_that_is_none_is_refused() -> None:
    fedcac = FedCAC()
    good = drawn(1, 61)[0]
    state = fedcac.init(good.tensors["params"], world.CLIENTS)
    assert flaw(good, fedcac.expects(state, 0), 10) is None
    critical = good.tensors["critical"]
    wrong = {
        "critical: a has shape [7], not [8]": critical | {"a": critical["a"][:7]},
        "critical: a is torch.bool, not torch.uint8": critical | {"a": critical["a"].bool()},
        "critical: lacks b": {"a": critical["a"]},
    }
    for said, mask in wrong.items():
        assert flaw(Payload(good.tensors | {"critical": mask}, good.metrics), fedcac.expects(state, 0), 10) == said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tau": 1.2}, "tau=1.2: must be from 0 to 1"),
        ({"tau": math.nan}, "tau=nan: must be from 0 to 1"),
        ({"beta": 0}, "beta=0: must be above 0; inf: the threshold stays at the average overlap"),
        ({"beta": math.nan}, "beta=nan: must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        FedCAC(**fields)
