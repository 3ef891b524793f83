"""What is known of the peers' graph before a run: its degrees, its diameter, and how fast it mixes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch

from fedshare.peers.around import Mixing
from fedshare.peers.flood import Links

MOST = 1024  # peers whose spectral gap is computed: the time grows with the third power


@dataclass(frozen=True)
class Shape:
    """A graph of peers, as plain data."""

    graph: str
    fewest: int  # neighbours from which a peer receives, in the first round
    most: int
    diameter: int | None  # rounds until each upload can have reached everyone; None: never
    period: int | None  # rounds after which the links repeat; None: they do not
    gap: float | None  # the spectral gap over a period
    links: Links | None = None  # of a graph that does not change
    places: list[list[float]] | None = None  # of its peers in a picture

    def line(self) -> str:
        """Return a line for people."""
        alike = self.fewest == self.most
        many = f"{self.most} neighbour{'s' * (not alike or self.most != 1)}"
        parts = [self.graph, f"{many} each" if alike else f"{self.fewest} to {many}"]
        if self.period == 1:
            parts.append(f"diameter {self.diameter}")
        elif self.diameter is not None:
            parts.append(f"other links in each round, which reach everyone in {self.diameter}")
        if self.gap is not None:
            parts.append(f"spectral gap {self.gap:.3g}" + f" in {self.period} rounds" * (self.period != 1))
        return f"peers: {', '.join(parts)}"


def diameter(links: Callable[[int], Links], peers: int) -> int | None:
    """Return the number of rounds, each with its own `links`, until each upload can have reached everyone.

    None if that takes more than twice as many rounds as there are peers.
    """
    everyone = (1 << peers) - 1
    heard = [1 << peer for peer in range(peers)]  # by peer, the set of those that it has heard of, as bits
    for round in range(1, 2 * peers + 1):
        heard = [
            reduce(or_, (heard[sender] for sender in senders), heard[peer]) for peer, senders in enumerate(links(round))
        ]
        if all(some == everyone for some in heard):
            return round
    return None


def gap(mixes: Callable[[int], Mixing], peers: int, period: int) -> float | None:
    """Return the spectral gap: 1 - the second largest singular value of the product of a period's weights.

    The distance from the average falls by at least this share in a period. None for weights that are not doubly
    stochastic, which do not lead to the average, and for more than `MOST` peers.
    """
    if peers > MOST:
        return None
    product = torch.eye(peers, dtype=torch.float64)
    for round in range(1, period + 1):
        weights = torch.zeros_like(product)
        for peer, row in enumerate(mixes(round)):
            weights[peer, list(row)] = torch.tensor(list(row.values()), dtype=torch.float64)
        if not torch.allclose(weights.sum(0), torch.ones(peers, dtype=torch.float64), rtol=0, atol=1e-9):
            return None
        product = weights @ product
    return 1 - float(torch.linalg.svdvals(product)[1])
