"""Who exchanges uploads with whom in a round, and how much each counts."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fedshare.errors import UserError
from fedshare.peers.decentralised import Decentralised, Mixing
from fedshare.peers.mixing import RULES
from fedshare.peers.traffic import Traffic
from fedshare.rounds.account import Account
from fedshare.strategy import Strategy

Links = list[list[int]]  # by peer, the peers whose uploads it receives, sorted, without itself


class Peering(ABC):
    """How participants are organised: with a server, or as peers in a graph."""

    @abstractmethod
    def around(self, strategy: Strategy, peers: int, seed: int) -> Strategy:
        """Return the strategy as it runs among `peers` participants. Raises UserError if they cannot form the graph."""

    def accounted(self, account: Account, peers: int, seed: int) -> Account:
        """Return the account of what these participants send."""
        return account


class Served(Peering):
    """A server aggregates for all: the strategy as it is."""

    def around(self, strategy: Strategy, peers: int, seed: int) -> Strategy:
        return strategy


@dataclass(frozen=True, kw_only=True)
class Topology(Peering):
    """A graph of peers, perhaps another one in each round."""

    # Weights of neighbours; metropolis: doubly stochastic; push: the shares of each sender are equal, for push_sum.
    mixing: Literal["metropolis", "uniform", "push"] = "metropolis"

    def __post_init__(self) -> None:
        if self.mixing not in RULES:
            raise UserError(f"peers.mixing={self.mixing}: must be one of {', '.join(RULES)}")

    def around(self, strategy: Strategy, peers: int, seed: int) -> Strategy:
        if peers < 2:
            raise UserError(f"peers: a graph needs at least 2 peers, not {peers}")
        self.check(self.links(peers, seed, 1))
        self.mixes(peers, seed, 1)
        return Decentralised(strategy, self.mixes, peers, seed)

    def accounted(self, account: Account, peers: int, seed: int) -> Account:
        return Traffic(account.groups, account.whole, mixes=partial(self.mixes, peers, seed))

    @abstractmethod
    def links(self, peers: int, seed: int, round: int) -> Links:
        """Return the links of a round. Raises UserError if so many peers cannot form the graph."""

    def check(self, links: Links) -> None:
        """Raise UserError if information from some peer never reaches some other."""
        if lost := unreached(links):
            raise UserError(f"peers: the graph is not connected: nothing from peer 0 reaches peer {lost[0]}")

    def mixes(self, peers: int, seed: int, round: int, present: Collection[int] | None = None) -> Mixing:
        """Return the weight of each upload that a peer receives, by peer and sender, if only `present` take part.

        With `metropolis` and `uniform` each receiver's weights sum to 1, with `metropolis` and `push` each sender's.
        Raises UserError if the graph does not allow that (`fedshare.peers.mixing`).
        """
        rule = RULES[self.mixing]
        mixing = rule.weigh(self.links(peers, seed, round))
        return mixing if present is None else rule.without(mixing, frozenset(present))


def unreached(links: Links) -> list[int]:
    """Return the peers that are not reached from peer 0, or do not reach it, along the links."""
    forward: Links = [[] for _ in links]
    for receiver, senders in enumerate(links):
        for sender in senders:
            forward[sender].append(receiver)
    lost = set[int]()
    for ways in (forward, links):
        seen, edge = {0}, [0]
        while edge:
            found = {other for peer in edge for other in ways[peer]} - seen
            seen |= found
            edge = list(found)
        lost |= set(range(len(links))) - seen
    return sorted(lost)
