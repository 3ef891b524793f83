"""The network of one peer: it plays its own part, and has the uploads of the others from them."""

from dataclasses import dataclass, field
from typing import Protocol

from fedshare.network import Exchange, Heard, NotAsked, NotAwaited, Peers, Purpose, Quotas
from fedshare.payload import Payload
from fedshare.state import State, digests


class Player(Protocol):
    """A peer's client side: it answers downloads, and keeps its memory."""

    state: State

    def __call__(self, purpose: Purpose, round: int, download: Payload) -> Payload: ...


@dataclass
class Own:
    """The memory of a single client, in this process."""

    me: int
    player: Player
    remote: bool = False

    def remember(self) -> dict[int, State]:
        return {self.me: self.player.state}

    def recall(self, memories: dict[int, State], round: int) -> None:
        self.player.state = memories[self.me]

    def keep(self, round: int) -> None:
        """Nothing is to be done: the checkpoint holds the memory."""


@dataclass
class Gathering:
    """A `Network` at one peer: `run_server` over it is the loop of a peer, which aggregates for itself.

    In training, the answers are what `peers` gathers. A peer tests only its own model. `start`: the last round done.
    """

    peers: Peers
    me: int
    player: Player
    start: int = 0
    _ids: list[int] | None = field(default=None, init=False)

    @property
    def memories(self) -> Own:
        return Own(self.me, self.player)

    def client_ids(self) -> list[int]:
        if self._ids is None:
            self._ids = self.peers.ids(self.start + 1)
        return self._ids

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        own = {self.me: self.player(purpose, round, downloads[self.me])} if self.me in downloads else {}
        if heard:
            heard(purpose, round, len(own), len(downloads))
        if purpose is not Purpose.TRAIN:
            others = downloads.keys() - {self.me}
            return Exchange(own, {peer: NotAsked("tests itself") for peer in sorted(others)})
        gathered = self.peers.gather(round, own.get(self.me), quotas) if self.client_ids() else {}
        if heard:
            heard(purpose, round, len(gathered), len(downloads))
        self.start, self._ids = round, None
        away = sorted(downloads.keys() - gathered.keys())
        absent: dict[int, str] = {peer: NotAwaited("is not there") for peer in away}
        return Exchange(gathered, absent, {self.me: digests(self.player.state)} if own else {})
