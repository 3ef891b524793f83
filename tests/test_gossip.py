"""Strategies for peers: push-sum, gradient tracking and CHOCO-SGD, against numpy and against gossip."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decentralised import RUN, among, matrix
from torch import Tensor, nn

import world
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.forms.compressors import Identity, TopK
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.peers import Topology
from fedshare.peers.graphs import Ring, Star
from fedshare.peers.topology import Links, unreached
from fedshare.peers.varying import OnePeerExponential
from fedshare.rounds import Round, Schedule, run_server
from fedshare.runs import RunFolder
from fedshare.simulation import Part, Population, Simulation
from fedshare.state import digests
from fedshare.strategies.choco import Choco
from fedshare.strategies.gossip import Gossip
from fedshare.strategies.gradient_tracking import GradientTracking, corrected
from fedshare.strategies.push_sum import PushSum
from fedshare.strategy import Strategy
from fedshare.tasks import Regression
from fedshare.training.rates import Step
from fedshare.training.scratch import Scratch

PEERS, FEATURES, RATE = 6, 2, 0.1


@dataclass(frozen=True, kw_only=True)
class Given(Topology):
    """Links that are given."""

    given: Links

    def links(self, peers: int, seed: int, round: int) -> Links:
        return self.given


# Peer 0 sends to all, and each other to the next one.
UNEVEN: Links = [[3], [0], [0, 1], [0, 2]]


# Least squares: each peer has other data, with another minimum.


class Line(nn.Module):
    """A linear model in float64, of one output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(FEATURES, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.double() @ self.weight


def data() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    xs = [random.normal(size=(8, FEATURES)).astype(np.float32).astype(np.float64) for _ in range(PEERS)]
    return [(x, (x @ (3.0 * random.normal(size=FEATURES))).astype(np.float32).astype(np.float64)) for x in xs]


def gradient(peer: int, weight: np.ndarray) -> np.ndarray:
    x, y = data()[peer]
    found: np.ndarray = 2 / len(y) * x.T @ (x @ weight - y)
    return found


def optimum() -> np.ndarray:
    """The minimum of the mean of all peers' losses."""
    x, y = (np.concatenate(part) for part in zip(*data(), strict=True))
    found: np.ndarray = np.linalg.lstsq(x, y, rcond=None)[0]
    return found


def least_squares(
    strategy: Strategy, topology: Topology, steps: int = 1, rate: float = RATE, **training: Any
) -> Population:
    parts = [Part(*[Examples(torch.from_numpy(x).float(), torch.from_numpy(y).float())] * 2) for x, y in data()]
    optimizer = partial(torch.optim.SGD, lr=rate)
    settings = Training(optimizer=optimizer, steps=steps, batch_size=None, **training)
    strategy = topology.around(strategy, PEERS, 0)
    return Population(strategy, Scratch(Line()), settings, parts, 0, task=Regression())


def models(population: Population, rounds: int, **options: Any) -> np.ndarray:
    """The model of each peer after the rounds, as it is tested: ``[peers, features]``."""
    with Simulation(lambda: population, population=population) as network:
        done = ran(population, network, rounds, **options)
        return models_of(population, network, done)


def ran(population: Population, network: Any, rounds: int, **options: Any) -> Round:
    schedule = Schedule(rounds=rounds, seed=0, evaluate_every=0, **options)
    return list(run_server(population.strategy, network, world.begin(population), schedule))[-1]


def models_of(population: Population, network: Any, done: Round) -> np.ndarray:
    found = []
    for peer in range(PEERS):
        client = population.client(peer, network.memories.remember().get(peer, {}))
        download = population.strategy.download(done.state, peer, Purpose.EVALUATE)
        assert download is not None
        population.strategy.apply(client, download)
        found.append(client.params()["weight"].numpy().copy())
    return np.stack(found)


class Lost(world.Altered):
    """A peer's upload is lost in one round."""

    def __init__(self, inner: Simulation, peer: int, round: int) -> None:
        super().__init__(inner, {})
        self.peer, self.round = peer, round

    def altered(
        self, purpose: Purpose, round: int, downloads: dict[int, Payload], answers: dict[int, Payload]
    ) -> dict[int, Payload]:
        if purpose is Purpose.TRAIN and round == self.round:
            answers.pop(self.peer, None)
        return answers


# Weights of directed graphs


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000), st.floats(0.1, 0.9))
def test_push_weights_and_what_is_absent_keep_the_sum_of_all(peers: int, seed: int, p: float) -> None:
    random = np.random.default_rng(seed)
    links = [[other for other in range(peers) if other != peer and random.random() < p] for peer in range(peers)]
    topology = Given(given=links, mixing="push")
    np.testing.assert_allclose(matrix(topology, peers, 0, 1).sum(0), 1, atol=1e-12)
    present = [peer for peer in range(peers) if random.random() < 0.6]
    kept = topology.mixes(peers, 0, 1, present)
    for sender in present:
        assert sum(kept[receiver].get(sender, 0) for receiver in present) == pytest.approx(1)
    for receiver, weights in enumerate(kept):
        assert weights.keys() <= (set(present) if receiver in present else set())


def test_a_directed_ring_receives_from_the_one_before() -> None:
    assert Ring(directed=True).links(4, 0, 1) == [[3], [0], [1], [2]]
    assert Ring(directed=True).links(2, 0, 1) == [[1], [0]]


def test_weights_that_cannot_be_doubly_stochastic_are_refused() -> None:
    assert not unreached(UNEVEN)
    with pytest.raises(UserError, match=r"peers.mixing=metropolis: .* say peers.mixing=push with strategy=push_sum"):
        Given(given=UNEVEN).around(Gossip(), 4, 0)
    Given(given=UNEVEN, mixing="push").around(PushSum(), 4, 0)
    for regular in (Ring(directed=True), OnePeerExponential()):
        regular.around(Gossip(), 5, 0)


# Push-sum


def pushed(topology: Topology, strategy: Strategy, rounds: int, absent: float = 0.0) -> tuple[Tensor, Tensor]:
    """The starts of 4 peers, and their models after rounds without training."""
    random, peers = np.random.default_rng(1), 4
    around = topology.around(strategy, peers, 0)
    start = torch.tensor([4.0, -1.0, 7.0, 0.5], dtype=torch.float64)
    first = around.init({"w": start[:1]}, peers)["peers"][0]
    state = {"peers": {peer: first | {"params": {"w": start[peer : peer + 1]}} for peer in range(peers)}}
    for round in range(1, rounds + 1):
        here = [peer for peer in range(peers) if random.random() >= absent]
        uploads = {peer: Payload({g: state["peers"][peer][g] for g in first}, {"examples": 1.0}) for peer in here}
        state = around.aggregate(state, round, uploads) if uploads else state
    return start, torch.cat([own["params"]["w"] for own in state["peers"].values()])


@pytest.mark.parametrize("topology", [Ring(directed=True, mixing="push"), Given(given=UNEVEN, mixing="push")], ids=str)
@pytest.mark.parametrize("absent", [0.0, 0.3])
def test_push_sum_on_a_directed_graph_converges_to_the_average(topology: Topology, absent: float) -> None:
    start, after = pushed(topology, PushSum(), 150, absent)
    torch.testing.assert_close(after, start.mean().expand(4), rtol=0, atol=2e-6)


def test_without_the_mass_a_directed_graph_favours_some() -> None:
    start, after = pushed(Given(given=UNEVEN, mixing="push"), Gossip(), 150)
    assert float(after.std()) < 1e-6
    assert abs(float(after.mean() - start.mean())) > 0.1


def test_training_changes_the_model_by_more_where_the_mass_is_small() -> None:
    population = world.build("push_sum")
    before = population.scratch.initial

    def uploaded(mass: float) -> dict[str, Tensor]:
        client = population.client(1, {})
        download = Payload({"params": before, "mass": {"mass": torch.tensor(mass)}})
        with client.engine.scope(0, "train", 1, 1):
            population.strategy.apply(client, download)
            return population.strategy.train(client, 1, download).tensors["params"]

    light, whole = uploaded(0.5), uploaded(1.0)
    buffers = population.client(1, {}).buffers
    for name, start in before.items():
        expected = whole[name] if name in buffers else start + 2 * (whole[name] - start)
        torch.testing.assert_close(light[name], expected, rtol=1e-4, atol=1e-6)


# Gradient tracking


def test_with_one_step_it_is_gradient_tracking_of_the_textbook() -> None:
    rounds, weights = 20, matrix(Ring(), PEERS, 0, 1)
    found = models(least_squares(GradientTracking(lr=RATE), Ring()), rounds)
    x = np.zeros((PEERS, FEATURES))
    gradients = np.stack([gradient(peer, x[peer]) for peer in range(PEERS)])
    tracked = gradients
    for _ in range(rounds):
        x = weights @ (x - RATE * tracked)
        last, gradients = gradients, np.stack([gradient(peer, x[peer]) for peer in range(PEERS)])
        tracked = weights @ tracked + gradients - last
    assert np.abs(x).max() > 0.5
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-10)


def test_with_unequal_data_gossip_stays_away_from_the_optimum_and_tracking_gets_there() -> None:
    gossip, tracking = (
        models(least_squares(strategy, Ring(), steps=2), 50) for strategy in (Gossip(), GradientTracking(lr=RATE))
    )
    assert np.abs(gossip - optimum()).max() > 0.5
    np.testing.assert_allclose(tracking, np.tile(optimum(), (PEERS, 1)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampled", [None, 4])
def test_corrections_sum_to_zero_also_after_a_lost_upload(sampled: int | None) -> None:
    population = least_squares(GradientTracking(lr=RATE), Ring())
    network = Lost(Simulation(lambda: population, population=population), 2, 4)
    for rounds in (3, 4, 5):
        network.inner.memories.states.clear()
        done = ran(population, network, rounds, clients_per_round=sampled)
        found = []
        for peer in range(PEERS):
            client = population.client(peer, network.memories.remember().get(peer, {}))
            download = population.strategy.download(done.state, peer, Purpose.TRAIN)
            assert download is not None
            found.append(corrected(client, download)["weight"])
        assert max(float(one.abs().max()) for one in found) > 0.1
        torch.testing.assert_close(sum(found), torch.zeros(FEATURES, dtype=torch.float64), rtol=0, atol=1e-12)


# CHOCO-SGD


def choco(gamma: float = 1.0, fraction: float | None = None) -> Choco:
    return Choco(gamma=gamma, compressor=Identity() if fraction is None else TopK(fraction))


@pytest.mark.parametrize("topology", [Ring(), Star()], ids=str)
def test_choco_without_compression_is_gossip(topology: Topology) -> None:
    one, other = (models(least_squares(strategy, topology, steps=2), 12) for strategy in (choco(), Gossip()))
    assert np.abs(one).max() > 0.5
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_compressed_models_agree_on_their_average() -> None:
    """From round 4 on nothing is trained, and each upload holds one of two numbers."""
    population = least_squares(choco(0.7, 0.5), Ring(), schedule=Step(every=3, factor=0.0))
    before, after = models(population, 3), models(population, 45)
    assert before.std(0).min() > 0.1
    np.testing.assert_allclose(after, np.tile(before.mean(0), (PEERS, 1)), rtol=0, atol=1e-4)


def test_copies_of_one_upload_are_equal_and_all_are_renewed_when_everyone_takes_part() -> None:
    population = among(Ring(), choco(0.5, 0.1))
    network = Lost(Simulation(lambda: population, population=population), 1, 5)
    some = ran(population, network, 6, clients_per_round=3)
    peers, behind = some.state["peers"], 0
    for own in peers.values():
        for sender, copy in own["copies"].items():
            if own["rounds"][sender] == peers[sender]["rounds"][sender]:
                assert digests(copy) == digests(peers[sender]["copies"][sender])
            else:
                behind += 1
    assert behind, "some have missed an upload"
    everyone = Schedule(rounds=9, seed=0, evaluate_every=0)
    peers = list(run_server(population.strategy, network, some.state, everyone, start=6))[-1].state["peers"]
    assert not any(own["whole"] for own in peers.values())
    for own in peers.values():
        for sender, copy in own["copies"].items():
            assert digests(copy) == digests(peers[sender]["copies"][sender])


def test_with_a_server_choco_is_always_compressed() -> None:
    population = replace(world.build("fedavg"), strategy=choco(0.5, 0.1))
    with Simulation(lambda: population, population=population) as network:
        schedule = Schedule(rounds=4, seed=0, clients_per_round=3, evaluate_every=0)
        rounds = list(run_server(population.strategy, network, world.begin(population), schedule))
    full = 3 * sum(tensor.nbytes for tensor in population.scratch.initial.values())
    assert all(0 < done.row["bytes_up"] < 0.6 * full for done in rounds)


def test_a_peer_whose_upload_is_lost_keeps_its_model() -> None:
    population = least_squares(choco(0.5, 0.5), Ring(), steps=2)
    network = Lost(Simulation(lambda: population, population=population), 2, 4)
    found = []
    for rounds in (3, 4):
        network.inner.memories.states.clear()
        found.append(models_of(population, network, ran(population, network, rounds)))
    moved = np.abs(found[1] - found[0]).max(1)
    assert moved[2] == 0
    assert (np.delete(moved, 2) > 0).all()


def test_the_largest_numbers_of_all_tensors_are_kept() -> None:
    tensors = {"a": torch.tensor([[0.1, -5.0], [2.0, 0.0]]), "b": torch.tensor([-3.0]), "c": torch.tensor(0.5)}
    kept = TopK(0.5).compress(tensors)
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {
        "a": [[0.0, -5.0], [2.0, 0.0]],
        "b": [-3.0],
        "c": 0.0,
    }
    assert TopK(0.01).compress(tensors)["a"].tolist() == [[0.0, -5.0], [0.0, 0.0]], "at least one"
    diverged = tensors | {"c": torch.tensor(torch.nan)}
    assert TopK(0.2).compress(diverged)["c"].isnan(), "otherwise nobody would notice"
    assert Identity().compress(tensors) is tensors


BAD = {
    "strategy=choco strategy.compressor.fraction=0": "strategy: fraction=0: must be above 0 and at most 1",
    "strategy=choco strategy.gamma=1.5": "strategy: gamma=1.5: must be above 0 and at most 1",
    "strategy=gradient_tracking strategy.lr=0": "strategy: lr=0: must be above 0",
    "peers.mixing=pull": "peers.mixing=pull: must be one of metropolis, uniform, push",
}


@pytest.mark.parametrize("overrides", BAD)
def test_a_bad_setting_is_one_line(overrides: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "peers=ring", *RUN, *overrides.split(), f"folder={tmp_path / 'run'}"])
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert BAD[overrides] in line
    assert len(line.splitlines()) == 1


def test_bytes_are_those_of_the_compressed_form_and_heads_stay_with_their_peers(tmp_path: Path) -> None:
    def last(name: str, *given: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            main(["run", *given, *RUN, "partition.clients=3", "rounds=1", f"folder={tmp_path / name}"])
        assert not ended.value.code
        row: dict[str, Any] = RunFolder(tmp_path / name).rows()[-1]
        return row

    row = last("choco", "peers=ring", "strategy=choco", "clients_per_round=null")
    assert row["bytes_up"] == sum(row["bytes_up_by_group"].values()) < 0.2 * row["bytes_up_full"]
    assert row["bytes_up_by_group"]["since"] == 3 * 2 * 8
    personal = last("dfedavgm", "-cn", "dfedavgm")["bytes_up_by_group"]
    assert personal.keys() == {"params/body"}
