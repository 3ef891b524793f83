"""Who exchanges uploads with whom in a round, and how much each counts."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from fedshare.errors import UserError
from fedshare.peers.around import Around, Mixing
from fedshare.peers.decentralised import Decentralised
from fedshare.peers.flood import Flood, Links
from fedshare.peers.flooding import Flooding
from fedshare.peers.mixing import RULES
from fedshare.peers.recorded import Recorded
from fedshare.peers.shape import Shape, diameter, gap
from fedshare.peers.traffic import Traffic
from fedshare.rounds.account import Account
from fedshare.strategy import Strategy


class Peering(ABC):
    """How participants are organised: with a server, or as peers in a graph."""

    @abstractmethod
    def around(self, strategy: Strategy, peers: int, seed: int, rounds: int = 0) -> Strategy:
        """Return the strategy as it runs among `peers` participants; `rounds` is the last round.

        Raises UserError if they cannot form the graph.
        """

    def accounted(self, account: Account, strategy: Strategy, peers: int, seed: int) -> Account:
        """Return the account of what these participants send."""
        return account

    def shape(self, peers: int, seed: int) -> Shape | None:
        """Return what is known of the graph, if there is one."""
        return None


class Served(Peering):
    """A server aggregates for all: the strategy as it is."""

    def around(self, strategy: Strategy, peers: int, seed: int, rounds: int = 0) -> Strategy:
        return strategy


@dataclass(frozen=True, kw_only=True)
class Topology(Peering):
    """A graph of peers, perhaps another one in each round."""

    # Weights of neighbours; metropolis: doubly stochastic; push: the shares of each sender are equal, for push_sum.
    mixing: Literal["metropolis", "uniform", "push"] = "metropolis"
    flood: Flood = field(default_factory=Flood, hash=False)  # of strategies whose model is a ledger

    def __post_init__(self) -> None:
        if self.mixing not in RULES:
            raise UserError(f"peers.mixing={self.mixing}: must be one of {', '.join(RULES)}")

    def around(self, strategy: Strategy, peers: int, seed: int, rounds: int = 0) -> Strategy:
        if peers < 2:
            raise UserError(f"peers: a graph needs at least 2 peers, not {peers}")
        self.check(self.links(peers, seed, 1))
        if isinstance(strategy, Recorded):
            return Flooding(strategy, self.links, peers, seed, rounds, self.flood)
        self.mixes(peers, seed, 1)
        return Decentralised(strategy, self.mixes, self.links, peers, seed, self.mixing == "push")

    def accounted(self, account: Account, strategy: Strategy, peers: int, seed: int) -> Account:
        links = partial(self.links, peers, seed)
        if isinstance(strategy, Around):
            return strategy.accounted(account, links)
        return Traffic(account.groups, account.whole, links=links)

    def shape(self, peers: int, seed: int) -> Shape:
        first, period = self.links(peers, seed, 1), self.period(peers)
        return Shape(
            graph=f"{type(self).__name__} of {peers}",
            fewest=min(map(len, first)),
            most=max(map(len, first)),
            diameter=diameter(partial(self.links, peers, seed), peers),
            period=period,
            gap=gap(partial(self.mixes, peers, seed), peers, period) if period else None,
        )

    def period(self, peers: int) -> int | None:
        """Return the number of rounds after which the links repeat; None if they do not."""
        return None

    @abstractmethod
    def links(self, peers: int, seed: int, round: int) -> Links:
        """Return the links of a round. Raises UserError if so many peers cannot form the graph."""

    def check(self, links: Links) -> None:
        """Raise UserError if information from some peer never reaches some other."""
        if lost := unreached(links):
            raise UserError("peers: the graph is not connected: nothing from peer {} reaches peer {}".format(*lost))

    def mixes(self, peers: int, seed: int, round: int, present: Collection[int] | None = None) -> Mixing:
        """Return the weight of each upload that a peer receives, by peer and sender, if only `present` take part.

        With `metropolis` and `uniform` each receiver's weights sum to 1, with `metropolis` and `push` each sender's.
        Raises UserError if the graph does not allow that (`fedshare.peers.mixing`).
        """
        mixing = self.weights(peers, seed, round)
        everyone = present is None or len(present) == peers
        return mixing if everyone else RULES[self.mixing].without(mixing, frozenset(present or ()))

    def weights(self, peers: int, seed: int, round: int) -> Mixing:
        """Return the weights if everyone takes part."""
        return RULES[self.mixing].weigh(self.links(peers, seed, round))


def unreached(links: Links) -> tuple[int, int] | None:
    """Return a sender and a peer that nothing from it reaches along the links; None if all reach all."""
    forward: Links = [[] for _ in links]
    for receiver, senders in enumerate(links):
        for sender in senders:
            forward[sender].append(receiver)
    for ways in (forward, links):
        seen, edge = {0}, [0]
        while edge:
            found = {other for peer in edge for other in ways[peer]} - seen
            seen |= found
            edge = list(found)
        if lost := set(range(len(links))) - seen:
            return (0, min(lost)) if ways is forward else (min(lost), 0)
    return None
