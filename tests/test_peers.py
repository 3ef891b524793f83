"""Rounds with no server: every peer ends with the memory that a server would have."""

import threading
from functools import partial

import pytest

import world
from fedshare.errors import RunHalted
from fedshare.ledger.transcript import kept
from fedshare.network import Peers, Purpose
from fedshare.payload import Payload
from fedshare.peers.gathering import Gathering
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.simulation.peers import Player, Table
from fedshare.state import digests

SCHEDULE = Schedule(rounds=4, seed=0, clients_per_round=4, max_examples=100)


def served(name: str) -> Round:
    network = Simulation(partial(world.build, name))
    strategy = network.population.strategy
    return list(run_server(strategy, network, world.begin(network.population), SCHEDULE))[-1]


@pytest.mark.long
@pytest.mark.parametrize("name", world.STRATEGIES)
def test_peers_without_a_server_end_with_the_memory_of_a_server(name: str) -> None:
    population = world.build(name)
    strategy = population.strategy

    def act(me: int, peers: Peers) -> list[Round]:
        state = strategy.init(population.scratch.initial, population.clients)
        return list(run_server(strategy, Gathering(peers, me, Player(population, me)), state, SCHEDULE))

    found = Table(range(world.CLIENTS)).run(act)
    expected = digests(served(name).state)
    assert [digests(rounds[-1].state) for rounds in found.values()] == [expected] * world.CLIENTS
    assert all(rounds[-1].link.server == found[0][-1].link.server for rounds in found.values())
    for me, rounds in found.items():
        assert list(rounds[-1].row["per_client"]["accuracy"]) == [str(me)]


def test_the_ledger_and_the_model_of_peers_are_the_servers() -> None:
    population = world.build("onebyte")
    strategy = population.strategy

    def act(me: int, peers: Peers) -> Round:
        state = strategy.init(population.scratch.initial, population.clients)
        return list(run_server(strategy, Gathering(peers, me, Player(population, me)), state, SCHEDULE))[-1]

    expected = kept(served("onebyte").state)
    for last in Table(range(world.CLIENTS)).run(act).values():
        manifest, ledger = kept(last.state)  # type: ignore[misc]
        assert (manifest, ledger.head, ledger.commits) == (
            expected[0],  # type: ignore[index]
            expected[1].head,  # type: ignore[index]
            expected[1].commits,  # type: ignore[index]
        )


def test_a_peer_that_fails_ends_the_others_and_its_error_is_what_is_told() -> None:
    reached = []

    def act(me: int, peers: Peers) -> None:
        peers.gather(1, Payload())
        if me == 1:
            raise ZeroDivisionError("by peer 1")
        reached.append(peers.gather(2, Payload()))

    with pytest.raises(ZeroDivisionError, match="by peer 1"):
        Table(range(3)).run(act)
    assert not reached


def test_a_wait_for_a_peer_ends_and_says_for_whom_it_was() -> None:
    given_up = threading.Event()

    def act(me: int, peers: Peers) -> None:
        try:
            peers.gather(1, None)  # peer 0 comes back from it first, and the others wait in it
            if me == 0:
                assert given_up.wait(world.PATIENCE)
        finally:
            given_up.set()

    with pytest.raises(RunHalted, match=r"peer [12] waited 2 s for peer 0"):
        Table(range(3), timeout=2.0).run(act)


def test_who_is_ready_may_leave_and_who_has_nothing_says_so() -> None:
    def act(me: int, peers: Peers) -> list[list[int]]:
        rounds = 1 if me == 0 else 3
        return [list(peers.gather(round, Payload() if me != 2 else None)) for round in range(1, rounds + 1)]

    assert Table(range(3)).run(act) == {0: [[0, 1]], 1: [[0, 1], [1], [1]], 2: [[0, 1], [1], [1]]}


def test_a_bad_upload_is_dropped_by_every_peer_alike() -> None:
    population = world.build("onebyte")
    strategy = population.strategy

    class Liar(Player):
        def __call__(self, purpose: Purpose, round: int, download: Payload) -> Payload:
            upload = super().__call__(purpose, round, download)
            return Payload({"codes": {}}, upload.metrics) if purpose is Purpose.TRAIN else upload

    def act(me: int, peers: Peers) -> Round:
        play = (Liar if me == 3 else Player)(population, me)
        state = strategy.init(population.scratch.initial, population.clients)
        schedule = Schedule(rounds=2, seed=0, max_examples=100)
        return list(run_server(strategy, Gathering(peers, me, play), state, schedule))[-1]

    found = Table(range(5)).run(act)
    assert all(list(done.row["dropped"]) == ["3"] for done in found.values())
    assert all(done.link.server == found[0].link.server for done in found.values())
