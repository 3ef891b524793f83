"""A peer in a process of its own whose model is a ledger: it passes on entries until everyone has all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from fedshare.directions.perturb import settle
from fedshare.ledger import Commit
from fedshare.ledger.entries import Entries
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import telling_sums
from fedshare.network import Quotas
from fedshare.payload import Payload
from fedshare.peers.applied import applied
from fedshare.peers.around import Around
from fedshare.peers.flood import Flood, Links, receivers_of
from fedshare.peers.mesh import SIGNED, Entering, Mesh, Voice
from fedshare.peers.recorded import Recorded
from fedshare.peers.station import Station
from fedshare.peers.traffic import Flooded
from fedshare.rounds.account import Account
from fedshare.state import State
from fedshare.strategy import Purpose
from fedshare.tensors import Tensors


@dataclass
class Place:
    """A peer's place in the flood: its own station, and the neighbours that have sent it their entries."""

    station: Station
    met: set[int]  # senders
    sent: int = 0  # bytes in this round,
    received: int = 0  # and those that came


@dataclass(frozen=True)
class Spreading(Around):
    """`Flooding` at the peer `me`: the same hops in the same rounds, so the same sets and the same models.

    The memory is this peer's alone. `aggregate` exchanges entries over the mesh; each is signed by its author. After
    the last round there are twice as many hops as peers, which reach everyone in a connected graph.
    """

    links: Callable[[int], Links]  # of the round
    count: int  # peers
    rounds: int  # the last round
    flood: Flood
    me: int
    mesh: Mesh = field(hash=False)
    voice: Voice = field(hash=False)

    reports: ClassVar[dict[str, str]] = {
        "entries": "entries of the ledger that this peer has",
        "taken_out": "peers that the operator has removed, whose entries do not count",
    }

    def init(self, params: Tensors, clients: int) -> State:
        state = self.inner.init(params, clients)
        width = sum(t.nbytes for t in self.inner.expects(state, self.me)["codes"].values())
        kept = {name: state[name] for name in ("params", "initial", "manifest")}
        sums = torch.zeros(len(state["initial"]), dtype=torch.int64)
        return kept | {"flood": _saved(Place(Station(Entries.empty(self.count, width, SIGNED), {}), set()), sums)}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        flood = state["flood"]
        head = bytes(flood["head"].tolist())
        return telling_sums(head, Sums(flood["sums"]).narrow(), len(flood["known"]) - 1)

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return self.inner.expects(state, client_id)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        inner, place = self._recorded, _restored(state["flood"], round)
        entries = place.station.entries
        before = entries.counted
        self._meet(place, round)
        if not self.flood.is_stale(entries, self.me, round):
            codes = inner.said(uploads[self.me])
            place.station.learnt(entries.say(round, self.me, codes + self.voice.sign(round, codes)))
        for peer, signature in self.voice.removals():
            place.station.learnt(entries.remove(peer, signature))
        for number in range(self.flood.hops):
            self._hop(place, number, round, self.links(round))
        if round == self.rounds:
            for later in range(2 * self.count):
                links = self.links(round + later)
                self._keep(place, links)
                self._hop(place, self.flood.hops + later, round, links)

        meaning, sums = Meaning.of(state["manifest"]), state["flood"]["sums"].clone()[None]
        applied(meaning, lambda round: inner.step(round, self.count), {0: entries}, {0: before}, sums)
        vector = torch.empty_like(state["initial"])
        settle(vector, state["initial"], sums[0], meaning.manifest.fraction)
        params = state["params"] | meaning.manifest.parameters(vector)
        return state | {"params": params, "flood": _saved(place, sums[0])}

    def accounted(self, account: Account, links: Callable[[int], Links]) -> Account:
        return Flooded(account.groups, account.whole, links=links, counted=_sent)

    def commits(self, state: State) -> Iterator[Commit]:
        entries = _restored(state["flood"], 0).station.entries
        for round, known in enumerate(entries.counted[1:], 1):
            said = {peer: entries.code(round * self.count + peer) for peer in np.flatnonzero(known).tolist()}
            if said:
                yield Commit(round, self._recorded.step(round, self.count), said)

    def report(self, state: State) -> dict[str, Any]:
        known = state["flood"]["known"]
        removed = {"taken_out": known[0].nonzero().flatten().tolist()} if known[0].any() else {}
        return {"entries": int(known[1:].sum())} | removed

    def _meet(self, place: Place, round: int) -> None:
        for peer in self.mesh.fresh():
            place.station.forget(peer)
            place.met.discard(peer)
        self._keep(place, self.links(round))

    def _keep(self, place: Place, links: Links) -> None:
        place.station.keep(receivers_of(links, self.me))
        place.met &= {*links[self.me]}

    def _hop(self, place: Place, number: int, round: int, links: Links) -> None:
        """Send each receiver what is due, and hear each sender. Those that have not met exchange a summary before."""
        station, receivers, senders = place.station, receivers_of(links, self.me), links[self.me]
        new = [peer for peer in receivers if not station.has_met(peer)]
        summaries = {peer: station.entries.summary() for peer in senders if peer not in place.met}
        theirs = self._swap(place, 2 * number, summaries, new) if new or summaries else {}
        messages = {peer: station.entries.pack(station.due(peer)) for peer in receivers if station.has_met(peer)}
        for peer, summary in theirs.items():
            try:
                messages[peer] = station.entries.pack(station.due(peer, summary))
            except ValueError as flaw:
                self.voice.doubt(peer, flaw)
                messages[peer] = station.entries.pack(np.zeros(0, dtype=np.int64))
        heard = self._swap(place, 2 * number + 1, messages, senders)
        for peer, message in sorted(heard.items()):
            try:
                received, fresh = station.entries.hear(message, round, self.voice.genuine)
            except ValueError as flaw:
                self.voice.doubt(peer, flaw)
                continue
            place.met.add(peer)
            station.heard(peer, received)
            station.learnt(fresh, peer)

    def _swap(self, place: Place, step: int, messages: dict[int, bytes], awaited: list[int]) -> dict[int, bytes]:
        answers = self.mesh.swap(step, messages, awaited)
        place.sent += sum(map(len, messages.values()))
        place.received += sum(map(len, answers.values()))
        return answers

    @property
    def _recorded(self) -> Recorded:
        assert isinstance(self.inner, Recorded)
        return self.inner


@dataclass
class Alone:
    """`Peers` of a peer that gathers no uploads: what it has of others comes as entries."""

    mesh: Mesh
    me: int

    def __post_init__(self) -> None:
        self._rounds = Entering(self.mesh)

    def ids(self, round: int) -> list[int]:
        return [self.me] if self._rounds.takes_part(round) else []

    def gather(self, round: int, upload: Payload | None, quotas: Quotas | None = None) -> dict[int, Payload]:
        return {} if upload is None else {self.me: upload}


def _sent(state: State) -> tuple[int, int, list[int]]:
    sent, received = state["flood"]["traffic"].tolist()
    return sent, received, []  # what others sent is not known here


def _saved(place: Place, sums: torch.Tensor) -> State:
    entries, waiting = place.station.entries, place.station.unsent()
    receivers = sorted(waiting)
    return {
        "known": torch.from_numpy(entries.known.copy()),
        "codes": torch.from_numpy(entries.codes.copy()),
        "head": torch.frombuffer(bytearray(entries.digest()), dtype=torch.uint8),
        "sums": sums,
        "met": torch.tensor(sorted(place.met), dtype=torch.int64),
        "receivers": torch.tensor([[peer, len(waiting[peer])] for peer in receivers], dtype=torch.int64).reshape(-1, 2),
        "waiting": torch.from_numpy(np.concatenate([*(waiting[p] for p in receivers), np.zeros(0, dtype=np.int64)])),
        "traffic": torch.tensor([place.sent, place.received]),
    }


def _restored(saved: State, rounds: int) -> Place:
    entries = Entries(saved["known"].numpy().copy(), saved["codes"].numpy().copy(), SIGNED)
    entries.reach(rounds)
    waiting, start = dict[int, Any](), 0
    for receiver, size in saved["receivers"].tolist():
        waiting[receiver] = saved["waiting"].numpy()[start : start + size]
        start += size
    return Place(Station(entries, waiting), set(saved["met"].tolist()))
