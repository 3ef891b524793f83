"""How neighbours agree on the rounds of their links, with connections that come and go in any order; no sockets."""

import random
from collections import deque

import pytest

from fedshare._proto.mesh_pb2 import MeshFrame, MeshHello
from fedshare.transport.mesh.agreement import Agreement
from fedshare.transport.mesh.link import number_of


class Model:
    """Peers that go from round to round, each when it has the messages of all whose links are open."""

    def __init__(self, graph: dict[int, set[int]], seed: int) -> None:
        self.graph, self.draw = graph, random.Random(seed)
        self.peers = {peer: Agreement(peer, others) for peer, others in graph.items()}
        self.wires: dict[tuple[int, int], deque[MeshFrame | tuple[int, str]]] = {}  # by sender and receiver
        self.waiting = dict.fromkeys(graph, False)  # whether a peer has sent what there is in its round
        self.joining = dict.fromkeys(graph, True)
        self.took: dict[tuple[int, int], set[int]] = {}  # by peer and round: whose messages it had
        self.gave: dict[tuple[int, int], set[int]] = {}

    def pairs(self) -> list[tuple[int, int]]:
        return [(a, b) for a in self.graph for b in self.graph[a] if a < b]

    def connect(self, a: int, b: int) -> None:
        if (a, b) in self.wires:
            return
        hello = self.peers[b].greet(a)
        self.peers[a].meet(b, MeshHello.FromString(hello.SerializeToString()))
        answer = self.peers[a].greet(b)
        self.wires[a, b], self.wires[b, a] = deque(), deque()
        self._resend(a, b, hello.lacks)
        self.wires[a, b].appendleft(MeshFrame(hello=answer))  # it arrives first, and by then b may have gone on
        self.greeted = getattr(self, "greeted", {})
        self.greeted[b, a] = hello.begun

    def _resend(self, sender: int, receiver: int, lacks: int) -> None:
        link = self.peers[sender].links[receiver]
        for number in list(link.sent):
            if number >= lacks:
                self.wires[sender, receiver].append((number, "message"))

    def cut(self, a: int, b: int) -> None:
        if (a, b) in self.wires:
            del self.wires[a, b], self.wires[b, a]
            for one, other in ((a, b), (b, a)):
                self.peers[one].part(other)

    def deliver(self, sender: int, receiver: int) -> None:
        self.flush()
        wire = self.wires.get((sender, receiver))
        if not wire:
            return
        frame, agreement = wire.popleft(), self.peers[receiver]
        link = agreement.links[sender]
        if isinstance(frame, tuple):
            number = frame[0]
            if number >= link.lacks and link.open_in(number >> 16):
                link.arrived[number], link.lacks = b"message", number + 1
        elif frame.HasField("hello"):
            if self.greeted[receiver, sender] != agreement.begun:
                self.cut(*sorted((sender, receiver)))
                return
            agreement.meet(sender, frame.hello)
            self._resend(receiver, sender, frame.hello.lacks)
        elif not frame.HasField("waiting"):
            agreement.hear(sender, frame)
        self.flush()

    def flush(self) -> None:
        for peer, agreement in self.peers.items():
            for other, link in agreement.links.items():
                while link.outbox and (peer, other) in self.wires:
                    self.wires[peer, other].append(link.outbox.popleft())

    def play(self, peer: int) -> None:
        """Let a peer go on, if it can."""
        agreement = self.peers[peer]
        if self.joining[peer]:
            if not any(link.connected for link in agreement.links.values()):
                return
            if not agreement._aim:
                agreement.propose()
            if agreement.ready(1) and any(link.next for link in agreement.links.values()):
                self.joining[peer] = False
                agreement.begin(1)
                self.send(peer)
        elif all(
            number_of(agreement.entered, 0) in link.arrived
            for link in agreement.links.values()
            if link.open_in(agreement.entered)
        ) and agreement.ready(agreement.entered + 1):
            links = agreement.links.items()
            self.took[peer, agreement.entered] = {
                other for other, link in links if number_of(agreement.entered, 0) in link.arrived
            }
            agreement.begin(agreement.entered + 1)
            self.send(peer)
        self.flush()

    def send(self, peer: int) -> None:
        self.flush()
        agreement = self.peers[peer]
        number = number_of(agreement.entered, 0)
        self.gave.setdefault((peer, agreement.entered), set())
        for other, link in agreement.links.items():
            if link.open_in(agreement.entered):
                link.sent[number] = b"message"
                self.gave[peer, agreement.entered].add(other)
                if (peer, other) in self.wires and link.connected:
                    self.wires[peer, other].append((number, "message"))

    def give_up(self, peer: int) -> None:
        """The grace of neighbours that are gone is over."""
        agreement = self.peers[peer]
        for other, link in agreement.links.items():
            missing = number_of(agreement.entered, 0) not in link.arrived
            if not self.joining[peer] and not link.connected and link.open_in(agreement.entered) and missing:
                agreement.shut(other)

    def restart(self, peer: int, anew: bool) -> None:
        """Kill a peer, and start it again with what it had on disk, or with nothing."""
        old = self.peers[peer]
        for other in self.graph[peer]:
            self.cut(*sorted((peer, other)))
        self.peers[peer] = new = Agreement(peer, self.graph[peer])
        open_ = {other: link.since for other, link in old.links.items() if link.open_in(old.entered)}
        if anew or self.joining[peer] or not open_:
            new.join(1)
            self.joining[peer] = True
            return
        new.resume(old.entered, open_)
        for other, link in new.links.items():
            link.lacks = number_of(old.entered, 0)
            if other in open_:
                link.sent = dict(old.links[other].sent)

    def step(self, faults: bool) -> None:
        draw = self.draw
        what = draw.random()
        a, b = draw.choice(self.pairs())
        if what < 0.5:
            sender, receiver = (a, b) if draw.random() < 0.5 else (b, a)
            self.deliver(sender, receiver)
        elif what < 0.85:
            self.play(draw.choice(list(self.graph)))
        elif what < 0.95 or not faults:
            self.connect(a, b)
        elif what < 0.98:
            self.cut(a, b)
        elif what < 0.995:
            self.give_up(draw.choice(list(self.graph)))
        else:
            self.restart(draw.choice(list(self.graph)), anew=draw.random() < 0.5)


GRAPHS = {
    "pair": {0: {1}, 1: {0}},
    "ring": {peer: {(peer + 1) % 6, (peer - 1) % 6} for peer in range(6)},
    "full": {peer: set(range(5)) - {peer} for peer in range(5)},
    "path": {0: {1}, 1: {0, 2}, 2: {1, 3}, 3: {2}},
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_after_any_faults_all_links_open_again_and_rounds_go_on(graph: str) -> None:
    for seed in range(25):
        model = Model(GRAPHS[graph], seed)
        for _ in range(model.draw.randrange(3000)):
            model.step(faults=True)
        for _ in range(3):  # what was lost is noticed, and then nothing fails any more
            for peer in model.graph:
                model.give_up(peer)
            for _ in range(400):
                model.step(faults=False)
        before = {peer: agreement.entered for peer, agreement in model.peers.items()}
        for _ in range(8000):
            model.step(faults=False)
        for peer, agreement in model.peers.items():
            assert agreement.entered > before[peer] + 3, (seed, peer, before, agreement.entered)
            for other, link in agreement.links.items():
                there = model.peers[other].links[peer]
                assert link.since, (seed, peer, other)
                assert link.since == there.since, (seed, peer, other)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_message_is_taken_only_of_who_gave_it_in_that_round(graph: str) -> None:
    for seed in range(25):
        model = Model(GRAPHS[graph], seed)
        for _ in range(3000):
            model.step(faults=True)
        for (peer, round), others in model.took.items():
            for other in others:
                assert peer in model.gave.get((other, round), set()), (seed, peer, other, round)
