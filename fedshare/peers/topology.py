"""Who exchanges uploads with whom in a round, and how much each counts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from fedshare.errors import UserError
from fedshare.peers.decentralised import Decentralised, Mixing
from fedshare.peers.flood import Flood, Links
from fedshare.peers.flooding import Flooding, Recorded
from fedshare.peers.shape import Shape, diameter, gap
from fedshare.peers.traffic import Flooded, Traffic
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

    mixing: Literal["metropolis", "uniform"] = "metropolis"  # the weights of neighbours; metropolis: doubly stochastic
    flood: Flood = field(default_factory=Flood, hash=False)  # of strategies whose model is a ledger

    def __post_init__(self) -> None:
        if self.mixing not in ("metropolis", "uniform"):
            raise UserError(f"peers.mixing={self.mixing}: must be metropolis or uniform")

    def around(self, strategy: Strategy, peers: int, seed: int, rounds: int = 0) -> Strategy:
        if peers < 2:
            raise UserError(f"peers: a graph needs at least 2 peers, not {peers}")
        self.check(self.links(peers, seed, 1))
        if isinstance(strategy, Recorded):
            return Flooding(strategy, self.links, peers, seed, rounds, self.flood)
        return Decentralised(strategy, self.mixes, peers, seed)

    def accounted(self, account: Account, strategy: Strategy, peers: int, seed: int) -> Account:
        kind = Flooded if isinstance(strategy, Flooding) else Traffic
        return kind(account.groups, account.whole, links=partial(self.links, peers, seed))

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

    def mixes(self, peers: int, seed: int, round: int) -> Mixing:
        """Return the weight of each upload that a peer receives, by peer and sender; each peer's sum to 1.

        ``metropolis``: 1 / (1 + the larger number of neighbours of the two), and the rest for the peer's own, so that
        the sums over receivers are 1, too (Xiao, Boyd and Lall 2006). ``uniform``: all equal, its own included.
        """
        links = self.links(peers, seed, round)
        degrees = [len(others) for others in links]
        mixing = []
        for peer, others in enumerate(links):
            if self.mixing == "uniform":
                weights = dict.fromkeys(others, 1 / (1 + len(others)))
            else:
                weights = {other: 1 / (1 + max(degrees[peer], degrees[other])) for other in others}
            mixing.append(dict(sorted((weights | {peer: 1 - sum(weights.values())}).items())))
        return mixing


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
