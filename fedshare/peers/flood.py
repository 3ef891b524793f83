"""How a ledger's entries spread over the links of a graph, until everyone has them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedshare.errors import UserError
from fedshare.ledger.entries import Entries, Keys
from fedshare.peers.station import Station

Links = list[list[int]]  # by peer, the peers whose uploads it receives, sorted, without itself


def receivers_of(links: Links, peer: int) -> list[int]:
    """Return the peers that receive from `peer`, sorted."""
    return [receiver for receiver, senders in enumerate(links) if peer in senders]


_QUIET = 64  # hops without news after which the flood has settled: part of the peers cannot be reached


@dataclass(frozen=True, kw_only=True)
class Flood:
    """The settings of a flood."""

    hops: int = 1  # messages over each link and direction in a round; the last round goes on until all have all entries
    stale: int | None = None  # a peer whose newest entry is older, in rounds, catches up before its measurements count
    loss: float = 0.0  # the probability that an entry is lost on a link, and sent again in the next message
    duplicates: float = 0.0  # the probability that an entry which has arrived is sent again
    remove: Sequence[tuple[int, int]] = ()  # rounds, and the peer that is removed in each: its entries are taken out

    def __post_init__(self) -> None:
        if self.hops < 1:
            raise UserError(f"hops={self.hops}: must be at least 1")
        if self.stale is not None and self.stale < 0:
            raise UserError(f"stale={self.stale}: must be null, or at least 0")
        for name in ("loss", "duplicates"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UserError(f"{name}={value}: must be at least 0 and below 1")
        for pair in self.remove:
            if not (isinstance(pair, Sequence) and len(pair) == 2 and pair[0] >= 1 and pair[1] >= 0):
                raise UserError(
                    f"remove={self.remove}: must be pairs of a round and a peer, such as [[30, 5], [30, 9]]"
                )

    def is_stale(self, entries: Entries, peer: int, round: int) -> bool:
        """Whether the newest entry of another peer that this one has is too old for a measurement on its model."""
        if self.stale is None:
            return False
        others = entries.known[1:].copy()
        others[:, peer] = False
        newest = int(np.flatnonzero(others.any(1)).max(initial=-1)) + 1
        return round - 1 - newest > self.stale


class Spread:
    """All peers of a simulation, and the messages between them."""

    def __init__(self, stations: dict[int, Station]) -> None:
        self.stations = stations
        self.sent = dict.fromkeys(stations, 0)  # bytes by peer

    def keep(self, links: Links) -> None:
        """Let peers forget those that are no longer neighbours: they compare summaries if they meet again."""
        receivers: Links = [[] for _ in links]
        for receiver, senders in enumerate(links):
            for sender in senders:
                receivers[sender].append(receiver)
        for peer, station in self.stations.items():
            station.keep(receivers[peer])

    def hop(self, links: Links, here: Collection[int], rounds: int, flood: Flood, draw: torch.Generator) -> bool:
        """Send one message over each link between peers who are `here`; return whether anyone received news."""
        messages = list[tuple[int, int, Keys]]()
        for receiver in here:
            for sender in links[receiver]:
                if sender in here and len(keys := self._due(sender, receiver)):
                    messages.append((sender, receiver, keys))
        disorder = bool(flood.loss or flood.duplicates)
        order = torch.randperm(len(messages), generator=draw).tolist() if disorder else range(len(messages))
        news = False
        for sender, receiver, keys in (messages[place] for place in order):
            source, station = self.stations[sender], self.stations[receiver]
            whole = source.entries.pack(keys)
            self.sent[sender] += len(whole)
            if disorder:
                chance = torch.rand((2, len(keys)), generator=draw).numpy()
                arrived = chance[0] >= flood.loss
                whole = source.entries.pack(keys[arrived])
                source.again(receiver, keys[~arrived | (chance[1] < flood.duplicates)])
                self.sent[receiver] += (len(keys) + 7) // 8  # says which have arrived
            received, new = station.entries.hear(whole, rounds)
            station.heard(sender, received)
            station.learnt(new, sender)
            news |= len(new) > 0
        return news

    def settle(self, links: Callable[[int], Links], here: Collection[int], hop: Callable[[int, Links], bool]) -> None:
        """Repeat `hop`, by its number, until all who are `here` have the same entries, or nothing moves any more."""
        number = quiet = 0
        while quiet < _QUIET and not self._equal(here):
            self.keep(now := links(number))
            quiet = 0 if hop(number, now) else quiet + 1
            number += 1

    def _due(self, sender: int, receiver: int) -> Keys:
        """Return what the sender has for the receiver, and count it as sent."""
        if self.stations[sender].has_met(receiver):
            return self.stations[sender].due(receiver)
        summary = self.stations[receiver].entries.summary()
        self.sent[receiver] += len(summary)
        return self.stations[sender].due(receiver, summary)

    def _equal(self, here: Collection[int]) -> bool:
        first, *others = (self.stations[peer].entries for peer in here)
        return all(np.array_equal(first.known, other.known) for other in others)
