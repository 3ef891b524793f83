"""A peer in a process of its own that aggregates its neighbours' uploads with its own."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fedshare.errors import RunHalted
from fedshare.forms.wire import Limits, from_bytes, to_bytes
from fedshare.network import Quotas
from fedshare.payload import Payload, Quota
from fedshare.peers.around import Around, Mixing, aggregated
from fedshare.peers.flood import Links, receivers_of
from fedshare.peers.mesh import Entering, Mesh, Voice
from fedshare.peers.traffic import OfOne
from fedshare.rounds.account import Account
from fedshare.state import State
from fedshare.strategy import Purpose, weakness
from fedshare.tensors import Tensors


@dataclass(frozen=True)
class Averaging(Around):
    """`Decentralised` at the peer `me`: the memory is this peer's alone."""

    mixes: Callable[[int, Collection[int] | None], Mixing]  # of the round, and of who is here; None: everyone
    count: int
    me: int

    def init(self, params: Tensors, clients: int) -> State:
        return self.inner.init(params, clients)

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return self.inner.download(state, client_id, purpose)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        if self.me not in uploads:
            return state
        weights = self.mixes(round, None)[self.me]
        if missing := weights.keys() - uploads.keys():
            weights = self.mixes(round, frozenset(range(self.count)) - missing)[self.me]
        return aggregated(self.inner, self.me, state, round, weights, uploads)

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return self.inner.expects(state, client_id)

    def weakness(self, clients: Collection[int]) -> str | None:
        return weakness(self.inner, clients)

    def accounted(self, account: Account, links: Callable[[int], Links]) -> Account:
        return OfOne(account.groups, account.whole, links=links, me=self.me)

    def report(self, state: State) -> dict[str, object]:
        return self.inner.report(state)

    @property
    def reports(self) -> dict[str, str]:  # type: ignore[override]
        return self.inner.reports


@dataclass
class Neighbours:
    """`Peers` over a mesh: a peer sends its upload to its receivers in the round's graph, and has its senders'."""

    mesh: Mesh
    voice: Voice
    me: int
    links: Callable[[int], list[list[int]]]  # of the round
    needed: bool  # whether the round cannot do without one of them

    def __post_init__(self) -> None:
        self._rounds = Entering(self.mesh)

    def ids(self, round: int) -> list[int]:
        if not self._rounds.takes_part(round):
            return []
        there = {*self.links(round)[self.me]}
        return sorted({*(there if self.needed else there & self.mesh.open()), self.me})

    def gather(self, round: int, upload: Payload | None, quotas: Quotas | None = None) -> dict[int, Payload]:
        links = self.links(round)
        message = b"" if upload is None else to_bytes(upload)
        answers = self.mesh.swap(0, dict.fromkeys(receivers_of(links, self.me), message), links[self.me])
        if self.needed and (missing := sorted(set(links[self.me]) - answers.keys())):
            raise RunHalted(f"round {round}: nothing came from peers {missing}, and peers.mixing=push needs everyone")
        gathered = {} if upload is None else {self.me: upload}
        for sender, answer in answers.items():
            try:
                if answer:
                    gathered[sender] = from_bytes(answer, Limits.of(quotas(sender) if quotas else Quota()))
            except ValueError as flaw:
                self.voice.doubt(sender, flaw)
        return dict(sorted(gathered.items()))
