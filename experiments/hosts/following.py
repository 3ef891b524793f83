"""The network of a peer that follows a relay's log: what it trains, attests, and leaves for those who join."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fedshare.network import Exchange, Heard, NotAwaited, Purpose, Quotas
from fedshare.payload import Payload
from fedshare.peers.gathering import Gathering
from fedshare.runs import RunFolder, checkpoint
from fedshare.state import State, copied, pack
from fedshare.transport.relay.relayed import Relayed


@dataclass
class Following(Gathering):
    """The network of a peer that follows a log: rounds that are over are not trained again."""

    folder: RunFolder | None = None
    every: int = 10  # rounds between two attestations
    upload: Callable[[int, bytes], None] = lambda round, data: None  # leaves a snapshot with the relay

    def client_ids(self) -> list[int]:
        found = super().client_ids()
        if self.folder and self.start and self.start % self.every == 0 and self._attested < self.start:
            self._attested = self.start
            self._attest(found)
        return found

    _attested: int = 0

    def _attest(self, ids: list[int]) -> None:
        relayed = self.peers
        assert isinstance(relayed, Relayed)
        assert self.folder is not None
        data = common(relayed, checkpoint.load(self.folder.checkpoints, self.start).server)
        relayed.attest(hashlib.sha256(data).digest())
        turn = self.start // self.every % max(1, len(ids))  # they take turns with the upload
        if self.me in ids and ids[turn] == self.me and relayed.client.rounds <= self.start + 1:
            self.upload(self.start, data)

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        if purpose is not Purpose.TRAIN:
            return super().exchange(purpose, round, downloads, quotas, heard)
        relayed = self.peers
        assert isinstance(relayed, Relayed)
        if self.me in downloads and relayed.took_part(round) is False:  # it was away, or too late
            others = {peer: download for peer, download in downloads.items() if peer != self.me}
            found = super().exchange(purpose, round, others, quotas, heard)
            return replace(found, absent=found.absent | {self.me: NotAwaited("was not there")})
        before = copied(self.player.state)
        found = super().exchange(purpose, round, downloads, quotas, heard)
        if self.me in downloads and self.me not in found.answers:
            self.player.state = before  # as in a simulation: what came too late has not happened
        return found


def common(relayed: Relayed, state: State) -> bytes:
    """Return what all peers have in common after a round: the server's memory, and how far the log is."""
    held: dict[str, Any] = {"round": relayed.start, "head": relayed.head.hex(), "relay": relayed.relay.hex()}
    return pack(held | {"members": relayed.members.pack().decode(), "server": state})
