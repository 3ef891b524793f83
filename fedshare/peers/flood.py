"""How a ledger's entries spread over the links of a graph, until everyone has them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedshare.errors import UserError
from fedshare.ledger.entries import Entries, Keys

Links = list[list[int]]  # by peer, the peers whose uploads it receives, sorted, without itself

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


class Spread:
    """The entries of all peers, and what each has yet to send to its neighbours.

    A peer sends a neighbour what the neighbour is not known to have. Two peers that meet for the first time compare
    summaries of their sets; after that they only send news, and again what was lost.
    """

    def __init__(self, sets: dict[int, Entries], waiting: dict[tuple[int, int], Keys]) -> None:
        self.sets = sets
        self.waiting = {pair: [keys] for pair, keys in waiting.items()}  # by sender and receiver that have met
        self.sent = dict.fromkeys(sets, 0)  # bytes by peer

    def keep(self, links: Links) -> None:
        """Forget what waits for peers that are no longer neighbours: they compare summaries if they meet again."""
        pairs = {(sender, receiver) for receiver, senders in enumerate(links) for sender in senders}
        self.waiting = {pair: keys for pair, keys in self.waiting.items() if pair in pairs}
        self._receivers: list[list[int]] = [[] for _ in links]
        for sender, receiver in sorted(pairs):
            self._receivers[sender].append(receiver)

    def learnt(self, peer: int, new: Keys, source: int | None = None) -> None:
        """Let entries that are new to a peer wait for all its neighbours but the one that sent them."""
        if len(new):
            for receiver in self._receivers[peer]:
                if receiver != source and (peer, receiver) in self.waiting:
                    self.waiting[peer, receiver].append(new)

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
            whole = self.sets[sender].pack(keys)
            self.sent[sender] += len(whole)
            if disorder:
                chance = torch.rand((2, len(keys)), generator=draw).numpy()
                arrived = chance[0] >= flood.loss
                whole = self.sets[sender].pack(keys[arrived])
                self.waiting[sender, receiver].append(keys[~arrived | (chance[1] < flood.duplicates)])
                self.sent[receiver] += (len(keys) + 7) // 8  # says which have arrived
            received, new = self.sets[receiver].hear(whole, rounds)
            self._heard(receiver, sender, received)
            self.learnt(receiver, new, sender)
            news |= len(new) > 0
        return news

    def settle(self, links: Callable[[int], Links], here: Collection[int], hop: Callable[[int, Links], bool]) -> None:
        """Repeat `hop`, by its number, until all who are `here` have the same entries, or nothing moves any more."""
        number = quiet = 0
        while quiet < _QUIET and not self._equal(here):
            self.keep(now := links(number))
            quiet = 0 if hop(number, now) else quiet + 1
            number += 1

    def unsent(self) -> dict[tuple[int, int], Keys]:
        """Return what waits, by sender and receiver; empty arrays for those who have met and are even."""
        return {pair: self._sorted(keys) for pair, keys in self.waiting.items()}

    def _due(self, sender: int, receiver: int) -> Keys:
        """Return what the sender has for the receiver, and count it as sent."""
        if (sender, receiver) not in self.waiting:
            summary = self.sets[receiver].summary()
            self.sent[receiver] += len(summary)
            keys = self.sets[sender].lacking(summary)
        else:
            keys = self._sorted(self.waiting[sender, receiver])
        self.waiting[sender, receiver] = []
        return keys

    def _heard(self, peer: int, sender: int, received: Keys) -> None:
        """Do not send back to the sender what it has."""
        waiting = self.waiting.get((peer, sender))
        if waiting and sum(map(len, waiting)):
            keys, there = np.concatenate(waiting), np.zeros(self.sets[peer].known.size, dtype=np.bool_)
            there[received] = True
            self.waiting[peer, sender] = [keys[~there[keys]]]

    def _equal(self, here: Collection[int]) -> bool:
        first, *others = (self.sets[peer] for peer in here)
        return all(np.array_equal(first.known, other.known) for other in others)

    @staticmethod
    def _sorted(keys: list[Keys]) -> Keys:
        if len(keys) == 1:
            return keys[0] if len(keys[0]) < 2 else np.unique(keys[0])
        return np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.int64)
