"""A strategy whose model is a ledger, without a server: peers pass on entries until everyone has all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedshare import seeds
from fedshare.errors import UserError
from fedshare.ledger import Commit
from fedshare.ledger.entries import Entries, Keys
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import telling_sums
from fedshare.network import Peers
from fedshare.payload import Payload
from fedshare.peers.applied import applied
from fedshare.peers.around import Around, consensus
from fedshare.peers.flood import Flood, Links, Spread
from fedshare.peers.mesh import Mesh, Voice
from fedshare.peers.recorded import Recorded
from fedshare.peers.spreading import Alone, Spreading
from fedshare.peers.station import Station
from fedshare.peers.traffic import Flooded
from fedshare.rounds.account import Account
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors


@dataclass(frozen=True)
class Flooding(Around):
    """Every peer has its own set of entries, and the model that follows from it. The inner strategy is `Recorded`.

    The rest of the memory is a server's: the ledger of everything that was said, and its model, which peers have once
    they have all entries. An entry's step depends on its round and the number of all peers, never on when or where it
    arrives, so peers with equal sets have equal models, to the bit. The nearest work is SeedFlood (2026, arXiv
    2602.18181), which floods such messages; here they are summed in integers, can be taken out again, and be replayed.

    Peers that do not take part in a round neither send nor receive, and are sent what they lack when they do again.
    """

    links: Callable[[int, int, int], Links]  # of the number of peers, the seed and the round
    count: int  # peers
    seed: int
    rounds: int  # the last round, after which the flood settles
    flood: Flood

    reports: ClassVar[dict[str, str]] = {
        "consensus": "root mean square distance of the peers' models from their average",
        "missing": "entries that a peer lacks, by peer; those that lack none are left out",
    }

    def __post_init__(self) -> None:
        for _, peer in self.flood.remove:
            if peer >= self.count:
                raise UserError(f"remove: there is no peer {peer}, only 0 to {self.count - 1}")

    def init(self, params: Tensors, clients: int) -> State:
        state = self.inner.init(params, clients)
        width = sum(t.nbytes for t in self.inner.expects(state, 0)["codes"].values())
        empty = Entries.empty(self.count, width)
        sums = torch.zeros((self.count, len(state["initial"])), dtype=torch.int64)
        return state | {"flood": _saved(Spread({peer: Station(empty, {}) for peer in range(self.count)}), sums)}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        flood = state["flood"]
        sums = Sums(flood["sums"][client_id]).narrow()
        return telling_sums(bytes(flood["heads"][client_id].tolist()), sums, flood["known"].shape[1] - 1)

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return self.inner.expects(state, client_id)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        inner, here = self._recorded, sorted(uploads)
        spread = _restored(state["flood"], round)
        stations = spread.stations
        before = {peer: stations[peer].entries.counted for peer in here}
        links = self.links(self.count, self.seed, round)
        spread.keep(links)

        fresh = [peer for peer in here if not self.flood.is_stale(stations[peer].entries, peer, round)]
        said = {peer: inner.said(uploads[peer]) for peer in fresh}
        for peer, codes in said.items():
            stations[peer].learnt(stations[peer].entries.say(round, peer, codes))
        for when, removed in self.flood.remove:
            if when == round:
                stations[here[0]].learnt(stations[here[0]].entries.remove(removed))

        def hop(number: int, links: Links) -> bool:
            draw = seeds.generator(self.seed, "flood", round, number)
            return spread.hop(links, uploads.keys(), round, self.flood, draw)

        for number in range(self.flood.hops):
            hop(number, links)
        if round == self.rounds:
            spread.settle(
                lambda later: self.links(self.count, self.seed, round + later),
                here,
                lambda number, links: hop(self.flood.hops + number, links),
            )

        commit = Commit(round, inner.step(round, self.count), said)
        sums = state["flood"]["sums"].clone()
        sets = {peer: station.entries for peer, station in stations.items()}
        applied(Meaning.of(state["manifest"]), lambda round: inner.step(round, self.count), sets, before, sums)
        return inner.extended(state, commit) | {"flood": _saved(spread, sums)}

    def check_apart(self) -> None:
        for name in ("loss", "duplicates", "remove"):
            if value := getattr(self.flood, name):
                raise UserError(f"peers.flood.{name}={value}: is for simulations, for it is drawn or planned there")

    def at(self, me: int, mesh: Mesh, voice: Voice) -> tuple[Strategy, Peers]:
        links = partial(self.links, self.count, self.seed)
        strategy = Spreading(self.inner, links, self.count, self.rounds, self.flood, me, mesh, voice)
        return strategy, Alone(mesh, me)

    def accounted(self, account: Account, links: Callable[[int], Links]) -> Account:
        return Flooded(account.groups, account.whole, links=links, counted=_sent)

    def report(self, state: State) -> dict[str, Any]:
        fraction = Meaning.of(state["manifest"]).manifest.fraction
        known = state["flood"]["known"][:, 1:].flatten(1)
        missing = (known.any(0).sum() - known.sum(1)).tolist()
        return {
            "consensus": consensus(state["flood"]["sums"].double() * 2.0**-fraction),
            "missing": {str(peer): lacking for peer, lacking in enumerate(missing) if lacking},
        }

    @property
    def _recorded(self) -> Recorded:
        assert isinstance(self.inner, Recorded)
        return self.inner


def _sent(state: State) -> tuple[int, int, list[int]]:
    """Return the bytes that all peers sent in the round, which are those received, and what each sent."""
    each: list[int] = state["flood"]["sent"].tolist()
    return sum(each), sum(each), each


def _saved(spread: Spread, sums: Tensor) -> State:
    """Return the peers' sets and sums as plain data.

    Entries are facts, the same wherever they are known, so their codes are kept once.
    """
    sets = [station.entries for _, station in sorted(spread.stations.items())]
    known = np.stack([entries.known for entries in sets])
    codes = np.maximum.reduce([entries.codes for entries in sets])
    heads = np.frombuffer(b"".join(entries.digest() for entries in sets), dtype=np.uint8)
    waiting = {
        (sender, receiver): keys
        for sender, station in spread.stations.items()
        for receiver, keys in station.unsent().items()
    }
    pairs = np.array(sorted(waiting), dtype=np.int64).reshape(-1, 2)
    keys = [waiting[sender, receiver] for sender, receiver in pairs.tolist()]
    return {
        "known": torch.from_numpy(known),
        "codes": torch.from_numpy(codes),
        "heads": torch.from_numpy(heads.reshape(len(known), -1).copy()),
        "sums": sums,
        "met": torch.from_numpy(np.concatenate([pairs, np.array([[len(some)] for some in keys]).reshape(-1, 1)], 1)),
        "waiting": torch.from_numpy(np.concatenate([*keys, np.zeros(0, dtype=np.int64)])),
        "sent": torch.tensor([spread.sent[peer] for peer in range(len(known))]),
    }


def _restored(saved: State, rounds: int) -> Spread:
    """Return the peers' sets, with room for `rounds` rounds, and what waits to be sent."""
    met = saved["met"].numpy()
    pieces = np.split(saved["waiting"].numpy(), np.cumsum(met[:, 2])[:-1]) if len(met) else []
    waiting: dict[int, dict[int, Keys]] = {peer: {} for peer in range(len(saved["known"]))}
    for (sender, receiver), keys in zip(met[:, :2].tolist(), pieces, strict=True):
        waiting[sender][receiver] = keys
    stations = dict[int, Station]()
    for peer, known in enumerate(saved["known"].numpy()):
        entries = Entries(known.copy(), np.where(known[..., None], saved["codes"].numpy(), 0))
        entries.reach(rounds)
        stations[peer] = Station(entries, waiting[peer])
    return Spread(stations)
