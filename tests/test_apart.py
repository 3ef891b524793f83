"""Peers in processes of their own have the bits of a simulation of all of them."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import world
from fedshare.errors import RunHalted, UserError
from fedshare.identity.signing import Signer, Verifier, signed_part
from fedshare.links.attendance import Attendance, Event
from fedshare.network import Network
from fedshare.peers import Flood, Topology
from fedshare.peers.gathering import Gathering
from fedshare.peers.graphs import Full, RandomRegular, Ring
from fedshare.peers.mesh import Apart
from fedshare.peers.varying import Matching, OnePeerExponential
from fedshare.population import Population
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.simulation.peers import Player
from fedshare.state import digests
from world import PATIENCE

SCHEDULE = Schedule(rounds=5, seed=0, max_examples=100)


class Ended(Exception):
    """Another peer has failed."""


@dataclass
class Hall:
    """All links, in this process. `away`: by peer, the rounds in which it takes no part, which all know."""

    away: dict[int, set[int]] = field(default_factory=dict)
    ended: bool = False
    boxes: dict[tuple[int, int, int, int], bytes] = field(default_factory=dict)
    changed: threading.Condition = field(
        default_factory=threading.Condition
    )  # who runs holds it: torch's streams are one


@dataclass
class InHall:
    """One peer's `Mesh` in the hall."""

    hall: Hall
    me: int
    round: int = 0
    spoil: Any = None  # changes what is sent

    def enter(self, round: int) -> int:
        while round in self.hall.away.get(self.me, ()):
            round += 1
        self.before, self.round = self.round, round
        return round

    def open(self) -> frozenset[int]:
        return frozenset(peer for peer in range(world.CLIENTS) if self.round not in self.hall.away.get(peer, ()))

    def fresh(self) -> frozenset[int]:
        """Who takes part in this round and has not in the one before, or everyone after a break of one's own."""
        here = self.open()
        if self.before != self.round - 1 or self.round == 1:
            return here
        return frozenset(peer for peer in here if self.round - 1 in self.hall.away.get(peer, ()))

    def swap(self, step: int, messages: Mapping[int, bytes], awaited: Collection[int]) -> dict[int, bytes]:
        there = lambda peer: self.round not in self.hall.away.get(peer, ())  # noqa: E731
        with self.hall.changed:
            for peer, message in messages.items():
                message = self.spoil(step, message) if self.spoil else message
                self.hall.boxes[self.me, peer, self.round, step] = message
            self.hall.changed.notify_all()
            keys = {peer: (peer, self.me, self.round, step) for peer in awaited if there(peer)}
            complete = lambda: self.hall.boxes.keys() >= set(keys.values())  # noqa: E731
            arrived = self.hall.changed.wait_for(lambda: self.hall.ended or complete(), PATIENCE)
            assert arrived, f"peer {self.me} lacks {set(keys.values()) - self.hall.boxes.keys()}"
            if not complete():
                raise Ended
            return {peer: self.hall.boxes.pop(key) for peer, key in keys.items()}

    def verifier(self, peer: int) -> bytes | None:
        return Signer.unprotected(f"peer {peer}").public

    def leave(self) -> None: ...


@dataclass
class Signs:
    """A peer's `Voice`."""

    me: int
    doubts: list[str] = field(default_factory=list)
    orders: dict[int, bytes] = field(default_factory=dict)

    def removals(self) -> list[tuple[int, bytes]]:
        return list(self.orders.items())

    def sign(self, round: int, codes: bytes) -> bytes:
        return Signer.unprotected(f"peer {self.me}").sign(signed_part(bytes(32), self.me, round, round, 1, codes))

    def genuine(self, round: int, peer: int, said: bytes) -> bool:
        if round == 0:
            return said[-64:] == bytes(range(64))
        public = Signer.unprotected(f"peer {peer}").public
        part = signed_part(bytes(32), peer, round, round, 1, said[:-64])
        return Verifier(public).accepts(part, said[-64:])

    def doubt(self, peer: int, flaw: ValueError) -> None:
        self.doubts.append(f"peer {peer}: {flaw}")


def among(name: str, topology: Topology) -> Population:
    made = world.build(name)
    return replace(made, strategy=topology.around(made.strategy, world.CLIENTS, 0, SCHEDULE.rounds))


def apart(
    name: str, topology: Topology, away: dict[int, set[int]], remove: dict[int, bytes] | None = None, **spoils: Any
) -> dict[int, tuple[list[Round], Signs]]:
    """Return each peer's rounds, and what it doubts."""
    hall, found, errors = Hall(away), dict[int, tuple[list[Round], Signs]](), list[BaseException]()

    def live(me: int) -> None:
        try:
            with hall.changed:
                act(me)
        except Ended:
            pass
        except BaseException as error:
            errors.append(error)
            with hall.changed:
                hall.ended = True
                hall.changed.notify_all()

    def act(me: int) -> None:
        population = among(name, topology)
        assert isinstance(population.strategy, Apart)
        voice = Signs(me, orders=remove or {} if me == 0 else {})
        mesh = InHall(hall, me, spoil=spoils.get(f"peer{me}"))
        strategy, peers = population.strategy.at(me, mesh, voice)
        own = replace(population, strategy=strategy)
        state = strategy.init(own.scratch.initial, own.clients)
        found[me] = list(run_server(strategy, Gathering(peers, me, Player(own, me)), state, SCHEDULE)), voice

    threads = [threading.Thread(target=live, args=(me,), daemon=True) for me in range(world.CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if errors:
        raise errors[0]
    return found


def simulated(name: str, topology: Topology, events: list[Event]) -> list[Round]:
    population = among(name, topology)
    late = [event.client for event in events if event.what == "join"]
    with Simulation(lambda: population, population=population) as network:
        here: Network = Attendance(network, lambda round, _: [one for one in events if one.round == round], late)
        return list(run_server(population.strategy, here, world.begin(population), SCHEDULE))


EVENTS = [Event(3, 4, "join"), Event(4, 1, "leave")]
AWAY = {4: {1, 2}, 1: {4, 5}}


@pytest.mark.parametrize("events", [False, True], ids=["all", "join-leave"])
@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("gossip", Ring()),
        ("gossip", Matching()),
        ("fedavg", OnePeerExponential(mixing="uniform")),
        ("fedcac", Full()),
        ("clipped_gossip", RandomRegular(degree=4)),
        ("choco", Ring()),
        ("gradient_tracking", Ring()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_peers_memory_is_that_of_a_simulation(name: str, topology: Topology, events: bool) -> None:
    expected = simulated(name, topology, EVENTS if events else [])
    for me, (rounds, voice) in apart(name, topology, AWAY if events else {}).items():
        for mine, theirs in zip(rounds, expected, strict=True):
            assert digests(mine.state) == digests(theirs.state["peers"][me]), f"peer {me}, round {mine.number}"
        assert not voice.doubts


@pytest.mark.parametrize("events", [False, True], ids=["all", "join-leave"])
@pytest.mark.parametrize(
    "topology",
    [Ring(), Ring(directed=True), Full(flood=Flood(hops=2)), Matching(), RandomRegular(degree=2, flood=Flood(stale=1))],
    ids=["ring", "directed", "full", "matching", "regular"],
)
def test_each_peers_entries_and_model_are_those_of_a_simulation(topology: Topology, events: bool) -> None:
    expected = simulated("onebyte", topology, EVENTS if events else [])
    for me, (rounds, voice) in apart("onebyte", topology, AWAY if events else {}).items():
        for mine, theirs in zip(rounds, expected, strict=True):
            if mine.number in AWAY.get(me, ()) and events:
                continue
            flood, whole = mine.state["flood"], theirs.state["flood"]
            where = f"peer {me}, round {mine.number}"
            assert torch.equal(flood["known"][: len(whole["known"][me])], whole["known"][me]), where
            assert torch.equal(flood["sums"], whole["sums"][me]), where
            assert torch.equal(flood["head"], whole["heads"][me]), where
        assert not voice.doubts


def test_what_a_peer_has_not_signed_is_not_believed_and_named() -> None:
    def forge(step: int, message: bytes) -> bytes:
        return message[:-1] + bytes([message[-1] ^ 1]) if step == 1 and len(message) > 64 else message

    found = apart("onebyte", Ring(), {}, peer2=forge)
    assert not found[0][1].doubts
    assert not found[2][1].doubts
    for neighbour in (1, 3):
        assert "peer 2: peer" in found[neighbour][1].doubts[0]
        assert "has not signed what it is said to have said in round" in found[neighbour][1].doubts[0]


def test_a_message_that_is_none_is_dropped_and_the_round_goes_on() -> None:
    found = apart("gossip", Ring(), {}, peer2=lambda step, message: message[:100])
    for neighbour in (1, 3):
        rounds, voice = found[neighbour]
        assert len(voice.doubts) == len(rounds) == 5
        assert "peer 2: its header" in voice.doubts[0]
        assert 2 not in rounds[0].row["clients"]


def test_push_needs_everyone() -> None:
    with pytest.raises(
        RunHalted, match=r"round 4: nothing came from peers \[1\], and peers.mixing=push needs everyone"
    ):
        apart("push_sum", Ring(directed=True, mixing="push"), {1: {4, 5}})


@pytest.mark.parametrize("flood", [Flood(loss=0.1), Flood(duplicates=0.1), Flood(remove=[(1, 1)])])
def test_what_a_simulation_draws_is_refused(flood: Flood) -> None:
    strategy = among("onebyte", Ring(flood=flood)).strategy
    assert isinstance(strategy, Apart)
    with pytest.raises(UserError, match=r"peers.flood.\w+=.*: is for simulations"):
        strategy.check_apart()


def test_a_removal_that_the_operator_has_signed_takes_out_a_peers_entries_everywhere() -> None:
    found = apart("onebyte", Ring(), {}, {3: bytes(range(64))})
    population = among("onebyte", Ring(flood=Flood(remove=[(1, 3)])))
    with Simulation(lambda: population, population=population) as network:
        expected = list(run_server(population.strategy, network, world.begin(population), SCHEDULE))
    for me, (rounds, voice) in found.items():
        assert not voice.doubts
        assert rounds[-1].row["taken_out"] == [3]
        for mine, theirs in zip(rounds, expected, strict=True):
            assert torch.equal(mine.state["flood"]["sums"], theirs.state["flood"]["sums"][me])
            assert torch.equal(mine.state["flood"]["head"], theirs.state["flood"]["heads"][me])


def test_a_removal_that_nobody_has_signed_is_not_believed() -> None:
    found = apart("onebyte", Ring(), {}, {3: bytes(64)})
    doubts = [line for rounds, voice in found.values() for line in voice.doubts]
    assert doubts[0] == "peer 0: peer 3 has not signed what it is said to have said in round 0"
    assert all("taken_out" not in found[me][0][-1].row for me in (1, 2, 3, 4))
