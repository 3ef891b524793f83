"""Peers without a server: graphs and their weights, and any strategy whose aggregate runs at every peer."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import long_but

import world
from fedshare.engine.batched import Batched
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.experiments.running.pictures import graph_lines, keep_graph
from fedshare.payload import Payload
from fedshare.peers import Decentralised, Topology
from fedshare.peers.around import Centred
from fedshare.peers.flooding import Recorded
from fedshare.peers.graphs import (
    ErdosRenyi,
    Exponential,
    File,
    Full,
    RandomRegular,
    Ring,
    SmallWorld,
    Star,
    Torus,
)
from fedshare.peers.varying import Matching, OnePeerExponential
from fedshare.population import Population
from fedshare.report.graph_plot import graph_plot, link_bytes
from fedshare.rounds import Round, Schedule, run_server
from fedshare.rounds.account import Account
from fedshare.rounds.rows import row_of_test
from fedshare.runs import RunFolder, verify
from fedshare.simulation import Simulation
from fedshare.state import digests, pack, unpack
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.gossip import Gossip
from fedshare.strategy import Purpose
from fedshare.tensors import mean

SCHEDULE = Schedule(rounds=3, seed=0, clients_per_round=4, max_examples=100)
EVERYONE = replace(SCHEDULE, clients_per_round=None)
UNDIRECTED: list[Topology] = [
    *(Full(), Ring(), Star(), Torus(), Exponential(), RandomRegular(), ErdosRenyi(), SmallWorld(), Matching()),
]
DIRECTED: list[Topology] = [OnePeerExponential()]
each_strategy = pytest.mark.parametrize("name", long_but(("fedavg", "fedcac", "onebyte"), world.STRATEGIES))
RUN = ["data=digits", "partition.clients=6", "train_examples=300", "client.epochs=1", "tracking=none", "workers=0"]


def among(topology: Topology, strategy: Any) -> Population:
    made = world.build(strategy) if isinstance(strategy, str) else replace(world.build("fedavg"), strategy=strategy)
    return replace(made, strategy=topology.around(made.strategy, world.CLIENTS, 0))


def run(population: Population, schedule: Schedule = SCHEDULE, **options: Any) -> list[Round]:
    with Simulation(lambda: population, population=population, **options) as network:
        return list(run_server(population.strategy, network, world.begin(population), schedule))


# Graphs and weights


def matrix(topology: Topology, peers: int, seed: int, round: int) -> np.ndarray:
    found = np.zeros((peers, peers))
    for peer, weights in enumerate(topology.mixes(peers, seed, round)):
        for sender, weight in weights.items():
            found[peer, sender] = weight
    return found


@pytest.mark.parametrize("topology", UNDIRECTED, ids=lambda one: type(one).__name__)
@settings(max_examples=15, deadline=None)
@given(st.sampled_from([9, 12, 15, 16, 20, 25]), st.integers(0, 50), st.integers(1, 9))
def test_metropolis_weights_are_symmetric_and_doubly_stochastic(
    topology: Topology, peers: int, seed: int, round: int
) -> None:
    found = matrix(topology, peers, seed, round)
    np.testing.assert_allclose(found, found.T, atol=1e-15)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (found >= 0).all()
    assert (np.diag(found) > 0).all()


@pytest.mark.parametrize("topology", [*UNDIRECTED, *DIRECTED], ids=lambda one: type(one).__name__)
def test_uniform_weights_are_equal_and_sum_to_1(topology: Topology) -> None:
    for weights in replace(topology, mixing="uniform").mixes(16, 0, 1):
        assert len(set(weights.values())) == 1 or np.ptp(list(weights.values())) < 1e-15
        assert sum(weights.values()) == pytest.approx(1)


def test_a_one_peer_exponential_graph_averages_exactly_after_all_its_powers() -> None:
    product = np.eye(16)
    for round in (1, 2, 3, 4):
        product = matrix(OnePeerExponential(), 16, 0, round) @ product
    np.testing.assert_allclose(product, np.full((16, 16), 1 / 16), atol=1e-12)


def test_random_graphs_are_connected_and_the_seed_s_own() -> None:
    """Of networkx's random regular graphs of degree 2 with 20 nodes, most seeds give one that is not connected."""
    for seed in range(20):
        RandomRegular(degree=2).around(Gossip(), 20, seed)
    draws = [RandomRegular().links(20, seed, 1) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


# Without a server


def begun(peers: int, values: torch.Tensor) -> tuple[dict[str, Any], dict[int, Payload]]:
    uploads = {
        peer: Payload({"params": {"w": values[peer : peer + 1].clone()}}, {"examples": 1.0}) for peer in range(peers)
    }
    return {"peers": {peer: {"params": one.tensors["params"]} for peer, one in uploads.items()}}, uploads


def test_on_a_ring_the_consensus_error_falls_by_the_second_eigenvalue() -> None:
    peers = 10
    values, vectors = np.linalg.eigh(matrix(Ring(), peers, 0, 1))
    second, start = values[-2], torch.from_numpy(vectors[:, -2].copy())
    assert second == pytest.approx((1 + 2 * np.cos(2 * np.pi / peers)) / 3)
    strategy = Ring().around(Gossip(), peers, 0)
    state, uploads = begun(peers, start)
    before = strategy.report(state)["consensus"]
    for round in range(1, 20):
        state = strategy.aggregate(state, round, uploads)
        uploads = {peer: replace(uploads[peer], tensors=own) for peer, own in state["peers"].items()}
        after = strategy.report(state)["consensus"]
        assert after / before == pytest.approx(second, abs=1e-9)
        before = after


def test_who_is_absent_keeps_its_model_and_its_weight_goes_to_each_receiver_s_own() -> None:
    strategy = Ring().around(Gossip(), 5, 0)
    state, uploads = begun(5, torch.arange(5, dtype=torch.float64))
    del uploads[1]
    after = [float(own["params"]["w"]) for own in strategy.aggregate(state, 1, uploads)["peers"].values()]
    assert after == pytest.approx([4 / 3, 1.0, 2 * 2 / 3 + 3 / 3, 3.0, (3 + 4 + 0) / 3])
    assert sum(after) == pytest.approx(10), "the sum of all is kept"


@pytest.mark.parametrize("mixing", ["metropolis", "uniform"])
def test_gossip_on_a_full_graph_is_fedavg_of_everyone(mixing: Any) -> None:
    found = run(among(Full(mixing=mixing), Gossip()), EVERYONE)[-1]
    server = run(replace(world.build("fedavg"), strategy=FedAvg(weighted=False)), EVERYONE)[-1]
    for own in found.state["peers"].values():
        for name, value in server.state["params"].items():
            torch.testing.assert_close(own["params"][name], value, rtol=0, atol=1e-6)
    assert found.row["consensus"] == pytest.approx(0, abs=1e-9)


# A ledger floods (`test_flood`), and a rule that is centred on a peer's own upload gives each peer another model.
ALIKE = [name for name in world.STRATEGIES if not isinstance(world.strategy(name), Recorded | Centred)]


@pytest.mark.parametrize("name", long_but(("fedavg", "fedcac"), ALIKE))
def test_on_a_full_graph_every_peer_has_the_bits_of_a_server(name: str) -> None:
    found, server = run(among(Full(), name), EVERYONE), run(world.build(name), EVERYONE)
    for one, other in zip(found, server, strict=True):
        assert all(digests(own) == digests(other.state) for own in one.state["peers"].values())
        same = other.row.keys() & {"accuracy", "loss", "train_loss", "per_client", "examples"}
        assert {key: one.row[key] for key in same} == {key: other.row[key] for key in same}


@each_strategy
def test_every_strategy_runs_on_a_ring_and_goes_on_to_the_same_bits(name: str) -> None:
    population = among(Ring(), name)
    rounds = run(population)
    assert all(not done.row["dropped"] for done in rounds)
    first, *rest = rounds
    with Simulation(lambda: population, population=population) as network:
        list(run_server(population.strategy, network, world.begin(population), replace(SCHEDULE, rounds=1)))
        network.memories.recall(unpack_each(network.memories.remember()), 1)
        state = unpack(pack(first.state))
        again = list(run_server(population.strategy, network, state, SCHEDULE, start=1, digest=first.link.digest))
    assert [done.link for done in again] == [done.link for done in rest]


def unpack_each(memories: dict[int, Any]) -> dict[int, Any]:
    return {client: unpack(pack(state)) for client, state in memories.items()}


def test_an_upload_costs_its_bytes_for_each_who_receives_it() -> None:
    account = Ring().accounted(Account({"w": "body"}, 40), Gossip(), 5, 0)
    sent = {peer: Payload({"params": {"w": torch.zeros(peer)}}) for peer in (1, 2, 3)}
    row = account.round(1, {1: sent[1], 3: sent[3]}, {2: sent[2]}, {4: sent[3]}, {})
    assert row == {
        "bytes_up": 2 * 4 * (1 + 2 + 3),
        "bytes_up_by_group": {"params/body": 2 * 4 * (1 + 3), "dropped": 2 * 4 * 2},
        "bytes_up_full": 6 * 40,
        "bytes_down": 2 * 4 * (1 + 3),
        "bytes_down_by_group": {"params/body": 2 * 4 * (1 + 3)},
        "bytes_down_full": 4 * 40,
        "bytes_by_peer": {"1": 2 * 4, "2": 2 * 4 * 2, "3": 2 * 4 * 3},
    }
    star = Star().accounted(Account(), Gossip(), 5, 0).round(1, {0: sent[1], 1: sent[1]}, {}, {}, {})
    assert star["bytes_up"] == 4 * 4 + 4


def test_peers_are_clients_of_the_batching_engine() -> None:
    population = among(Ring(), Gossip())
    plain, batched = run(population), run(population, engine=Batched)
    for peer, own in plain[-1].state["peers"].items():
        for name, value in own["params"].items():
            torch.testing.assert_close(value, batched[-1].state["peers"][peer]["params"][name], rtol=0, atol=1e-5)


def test_a_wrapper_declares_what_it_reports() -> None:
    found = run(among(Ring(), "rffl"))[-1].row.keys() & {"consensus"}
    assert not found, "there is no global model"
    strategy = among(Ring(), Gossip()).strategy
    assert isinstance(strategy, Decentralised)
    assert strategy.report(run(among(Ring(), Gossip()))[-1].state).keys() <= strategy.reports.keys()


# Commands


@pytest.mark.parametrize("peers", ["ring", "matching"])
def test_a_run_among_peers_is_one_line_and_goes_on(
    peers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = ["run", f"peers={peers}", "strategy=gossip", *RUN]
    with pytest.raises(SystemExit) as ended:
        main([*given, "rounds=3", f"folder={whole}"])
    assert not ended.value.code
    for arguments in ([*given, "rounds=1", f"folder={parts}"], ["resume", str(parts), "--rounds", "3"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
    assert verify(RunFolder(whole), RunFolder(parts))[0]
    rows = RunFolder(whole).rows()
    assert rows[-1]["accuracy"] > 0.3
    assert rows[-1]["consensus"] > 0
    assert RunFolder(whole).graph.read_bytes() == RunFolder(parts).graph.read_bytes()
    assert (whole / "graph.svg").exists() is (peers == "ring")
    out = capsys.readouterr().out
    assert re.search(r"(?m)^peers: \w+ of 6, [12] neighbours? each, ", out)
    assert re.search(r"(?m)^round .* average +consensus ", out)
    average = f"{rows[-1]['average']['accuracy']:.4f}"
    apart = f"{rows[-1]['consensus']:.4f}"
    assert re.search(rf"(?m)^ +3 .* {average} +{apart} ", out)
    assert f"average   accuracy {average} of the average model, from which the peers' models are {apart} away" in out


def test_a_run_does_not_go_on_with_another_graph(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for _ in range(2):
        keep_graph(folder, Ring().shape(6, 0))
    with pytest.raises(UserError, match=r"graph.json: the run began with this graph, and the config makes another one"):
        keep_graph(folder, Star().shape(6, 0))
    folder.graph.write_text("[")
    with pytest.raises(UserError, match=r"graph.json is damaged: "):
        keep_graph(folder, Ring().shape(6, 0))


BAD = {
    "peers=torus partition.clients=7": "peers=torus: 7 peers form no grid with sides of at least 3; 9, 12, 15 or 16 do",
    "peers=ring partition.clients=1": "peers: a graph needs at least 2 peers, not 1",
    "peers=random_regular peers.degree=3 partition.clients=5": (
        "peers.degree=3: 5 peers cannot have so many neighbours each: must be from 1 to 4, and even because the number"
    ),
    "peers=random_regular peers.degree=9": "peers.degree=9: 6 peers cannot have so many neighbours each",
    "peers=erdos_renyi peers.p=0": "peers.p=0: must be above 0 and at most 1",
    "peers=erdos_renyi peers.p=0.01": "peers: none of 100 such graphs of 6 peers is connected: more links are required",
    "peers=small_world peers.nearest=3": "peers.nearest=3: must be even, at least 2, and below 6, the peers",
    "peers=small_world peers.nearest=0": "peers.nearest=0: must be even, at least 2, and below 6, the peers",
    "peers=small_world partition.clients=2": "peers=small_world: 2 peers form no lattice; 3 or more do",
    "peers=ring peers.mixing=none": "peers.mixing=none: must be one of metropolis, uniform",
    "peers=file peers.path=/nowhere": "peers.path=/nowhere: cannot be read",
}


@pytest.mark.parametrize("overrides", BAD)
def test_what_is_no_graph_is_one_line(overrides: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "strategy=gossip", *RUN, *overrides.split(), f"folder={tmp_path / 'run'}"])
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert BAD[overrides] in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0 1 0.5\n", "line 1: must be two numbers of peers, not '0 1 0.5'"),
        ("0 1\n1 2\n2 9\n", "line 3: there is no peer 9, only 0 to 3"),
        ("0 1\n1 1\n", "line 2: links peer 1 to itself"),
        ("0 1 2\n", "line 1: must be two numbers of peers, not '0 1 2'"),
        ("0 one\n", "line 1: must be two numbers of peers"),
        ("0 1\n2 3  # the others\n", "peers: the graph is not connected: nothing from peer 0 reaches peer 2"),
        ("", "peers: the graph is not connected"),
    ],
)
def test_what_a_file_of_links_may_not_hold(text: str, line: str, tmp_path: Path) -> None:
    (path := tmp_path / "links").write_text(text)
    with pytest.raises(UserError, match=line.replace("'", ".")):
        File(path=str(path)).around(Gossip(), 4, 0)


def test_a_file_of_links_is_a_graph(tmp_path: Path) -> None:
    (path := tmp_path / "links").write_text("# a path\n0 1\n\n2 1 {'weight': 2}\n3 2\n")
    assert File(path=str(path)).links(4, 0, 1) == [[1], [0, 2], [1, 3], [2]]
    assert Ring().links(2, 0, 1) == [[1], [0]]


WRITERS: dict[str, Any] = {
    "graphml": nx.write_graphml,
    "gml": nx.write_gml,
    "adjlist": nx.write_adjlist,
    "edgelist": nx.write_edgelist,
    "json": lambda graph, path: path.write_text(json.dumps(nx.node_link_data(graph))),
    "JSON": lambda graph, path: path.write_text(json.dumps(nx.node_link_data(graph, edges="links"))),
}


def written(graph: nx.Graph, kind: str, folder: Path) -> str:
    WRITERS[kind](graph, folder / f"graph.{kind}")
    return str(folder / f"graph.{kind}")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_graph_that_networkx_wrote_is_read_as_it_was(kind: str, tmp_path: Path) -> None:
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(2, 3))
    found = File(path=written(grid, kind, tmp_path)).links(6, 0, 1)
    assert found == [sorted(grid[peer]) for peer in range(6)]
    (tmp_path / "directed").mkdir()
    cycle = File(path=written(nx.cycle_graph(5, nx.DiGraph), kind, tmp_path / "directed"), directed=True)
    cycle.around(Gossip(), 5, 0)
    assert cycle.links(5, 0, 1) == [[4], [0], [1], [2], [3]], "each receives from the one before"


@pytest.mark.parametrize(
    ("graph", "kind", "line"),
    [
        (nx.cycle_graph(4, nx.DiGraph), "gml", "graph.gml: is a directed graph, which needs peers.directed=true"),
        (nx.cycle_graph(5), "graphml", "graph.graphml: there is no peer 4, only 0 to 3"),
        (nx.Graph([(0, 1), (2, 3)]), "adjlist", "the graph is not connected: nothing from peer 0 reaches peer 2"),
        (nx.Graph([(0, 1), (1, 2), (2, 3), (2, 2)]), "json", "graph.json: links peer 2 to itself"),
        (nx.Graph([(0, 1), (1, 2), (2, "three")]), "gml", "graph.gml: there is no peer three, only 0 to 3"),
        (nx.compose(nx.cycle_graph(4), nx.empty_graph(5)), "gml", "graph.gml: peer 4 has no link"),
    ],
)
def test_what_a_graph_of_networkx_may_not_be(graph: nx.Graph, kind: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        File(path=written(graph, kind, tmp_path)).around(Gossip(), 4, 0)


def test_a_directed_graph_must_lead_from_everyone_to_everyone(tmp_path: Path) -> None:
    (path := tmp_path / "links").write_text("0 1\n1 2\n2 1\n")
    with pytest.raises(UserError, match="the graph is not connected: nothing from peer 1 reaches peer 0"):
        File(path=str(path), directed=True).around(Gossip(), 3, 0)


@pytest.mark.parametrize("suffix", ["graphml", "gml", "json"])
@pytest.mark.parametrize("text", ["", "0 1\n", "[1]", "[" * 10**5])
def test_a_file_that_is_not_of_its_format_is_one_line(suffix: str, text: str, tmp_path: Path) -> None:
    (path := tmp_path / f"graph.{suffix}").write_text(text)
    with pytest.raises(UserError, match=rf"^\S+: holds no graph in the format .{suffix}: [^\n]+$"):
        File(path=str(path)).around(Gossip(), 4, 0)


# What a person looks at


@pytest.mark.parametrize("topology", [Ring(), Torus(), Star(), Full(), OnePeerExponential()])
def test_the_shape_of_a_graph(topology: Topology) -> None:
    """The gap against numpy's, and the diameter against networkx's."""
    shape, product = topology.shape(12, 0), np.eye(12)
    for round in range(1, (shape.period or 0) + 1):
        product = matrix(topology, 12, 0, round) @ product
    assert shape.gap == pytest.approx(1 - np.linalg.svd(product)[1][1], abs=1e-12)
    if shape.links is not None:
        graph = nx.Graph((peer, other) for peer, others in enumerate(shape.links) for other in others)
        assert shape.diameter == nx.diameter(graph)
        assert (shape.fewest, shape.most) == (min(dict(graph.degree).values()), max(dict(graph.degree).values()))
        assert shape.places == topology.shape(12, 0).places, "a picture is the same each time"


def test_what_a_changing_or_unbalanced_graph_does_not_have() -> None:
    assert Matching().shape(16, 0).gap is None
    assert 4 <= (Matching().shape(16, 0).diameter or 0) <= 16
    assert Star(mixing="uniform").shape(5, 0).gap is None
    assert replace(Star(), mixing="metropolis").shape(5, 0).gap is not None
    assert OnePeerExponential().shape(16, 0).line() == (
        "peers: OnePeerExponential of 16, 1 neighbour each, other links in each round, which reach everyone in 4, "
        "spectral gap 1 in 4 rounds"
    )


def test_how_few_links_sampled_peers_use_is_in_the_run_s_first_lines() -> None:
    shape = Ring().shape(10, 0)
    assert graph_lines(shape, 10, None) == graph_lines(shape, 10, 10) == shape.line()
    some = "4 of 10 peers take part in each round, so about 13 % of the links are used; clients_per_round=null: all"
    assert graph_lines(shape, 10, 4).splitlines() == [shape.line(), some]


def test_the_average_model_is_tested_on_everyone_s_examples() -> None:
    population = among(Ring(), Gossip())
    last = run(population, EVERYONE)[-1]
    peers = last.state["peers"]
    shared = mean([own["params"] for own in peers.values()])
    alike = {"peers": {peer: own | {"params": shared} for peer, own in peers.items()}}
    with Simulation(lambda: population, population=population) as network:
        downloads = {peer: population.strategy.download(alike, peer, Purpose.EVALUATE) for peer in peers}
        answers = network.exchange(Purpose.EVALUATE, 3, downloads).answers
    expected = row_of_test(population.task, answers, EVERYONE)
    assert last.row["average"] == {key: expected[key] for key in ("accuracy", "loss")}
    assert last.row["average"]["loss"] != last.row["loss"]


@pytest.mark.parametrize("name", ["rffl", "local", "onebyte"])
def test_without_models_in_the_downloads_there_is_no_average(name: str) -> None:
    assert "average" not in run(among(Ring(), name))[-1].row


def test_the_bytes_of_a_link_are_those_of_both_its_ends() -> None:
    links = [[1, 2], [0], [0]]
    rows: list[dict[str, Any]] = [{"bytes_by_peer": {"0": 20, "1": 3}}, {"bytes_by_peer": {"2": 5, "1": 3}}, {}]
    assert link_bytes(links, rows) == {(0, 1): 16, (0, 2): 15}


def test_the_picture_of_a_graph(tmp_path: Path) -> None:
    shape = vars(Ring().shape(5, 0))
    rows = [row.row for row in run(among(Ring(), Gossip()), replace(EVERYONE, rounds=1))]
    rows[-1]["per_client"]["accuracy"].pop("1")  # not tested
    pictures = []
    for name in ("one", "two"):
        assert graph_plot(shape, rows, tmp_path / name)
        pictures.append((tmp_path / name).read_text())
    assert pictures[0] == pictures[1]
    assert "Ring of 5" in pictures[0]
    assert graph_plot(shape, [], tmp_path / "begun"), "before any test"
    assert graph_plot(vars(Full().shape(150, 0)), [], tmp_path / "many")
    assert "11,175 links, not drawn" in (tmp_path / "many").read_text()
    assert not graph_plot(vars(Matching().shape(4, 0)), rows, tmp_path / "none"), "its links change"
    assert not (tmp_path / "none").exists()
