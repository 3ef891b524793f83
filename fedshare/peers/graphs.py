"""Graphs of peers that stay the same in all rounds. This is the only file that uses networkx."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx

from fedshare import seeds
from fedshare.errors import UserError, first_line
from fedshare.peers.topology import Links, Topology

ATTEMPTS = 100  # random graphs that are drawn until one is connected


@dataclass(frozen=True, kw_only=True)
class Fixed(Topology):
    """A graph that does not change."""

    def links(self, peers: int, seed: int, round: int) -> Links:
        return _links(self, peers, seed)

    @abstractmethod
    def graph(self, peers: int, seed: int) -> nx.Graph:
        """Return a graph of the nodes 0 to `peers` - 1. Raises UserError if there is none of so many."""


@cache
def _links(topology: Fixed, peers: int, seed: int) -> Links:
    graph = topology.graph(peers, seed)
    return [sorted(graph.pred[peer] if graph.is_directed() else graph[peer]) for peer in range(peers)]


@dataclass(frozen=True, kw_only=True)
class Full(Fixed):
    """Everyone exchanges with everyone."""

    def graph(self, peers: int, seed: int) -> nx.Graph:
        return nx.complete_graph(peers)


@dataclass(frozen=True, kw_only=True)
class Ring(Fixed):
    """Each peer exchanges with the one before and the one after."""

    directed: bool = False  # whether a peer only receives from the one before, and sends to the one after

    def graph(self, peers: int, seed: int) -> nx.Graph:
        if self.directed:
            return nx.cycle_graph(peers, nx.DiGraph)
        return nx.cycle_graph(peers) if peers > 2 else nx.path_graph(peers)


@dataclass(frozen=True, kw_only=True)
class Star(Fixed):
    """All exchange with peer 0."""

    def graph(self, peers: int, seed: int) -> nx.Graph:
        return nx.star_graph(peers - 1)


@dataclass(frozen=True, kw_only=True)
class Torus(Fixed):
    """A grid as square as possible whose ends meet: each peer exchanges with four."""

    def graph(self, peers: int, seed: int) -> nx.Graph:
        height = max((side for side in range(1, int(peers**0.5) + 1) if peers % side == 0), default=1)
        if height < 3:
            raise UserError(f"peers=torus: {peers} peers form no grid with sides of at least 3; 9, 12, 15 or 16 do")
        grid = nx.grid_2d_graph(height, peers // height, periodic=True)
        return nx.relabel_nodes(grid, {(row, column): row * (peers // height) + column for row, column in grid})


@dataclass(frozen=True, kw_only=True)
class Exponential(Fixed):
    """Each peer exchanges with those at distances 1, 2, 4, 8, ... in both directions of a ring."""

    def graph(self, peers: int, seed: int) -> nx.Graph:
        jumps = [2**power for power in range((peers - 1).bit_length()) if 2**power < peers]
        return nx.circulant_graph(peers, jumps)


@dataclass(frozen=True, kw_only=True)
class RandomRegular(Fixed):
    """A random graph in which every peer has `degree` neighbours, drawn by the seed."""

    degree: int = 4  # neighbours of each peer

    def graph(self, peers: int, seed: int) -> nx.Graph:
        if not 0 < self.degree < peers or peers * self.degree % 2:
            raise UserError(
                f"peers.degree={self.degree}: {peers} peers cannot have so many neighbours each: must be from 1 to "
                f"{peers - 1}" + (", and even because the number of peers is odd" if peers % 2 else "")
            )
        return _connected(lambda draw: nx.random_regular_graph(self.degree, peers, draw), self, peers, seed)


@dataclass(frozen=True, kw_only=True)
class ErdosRenyi(Fixed):
    """Each pair of peers is linked with probability `p`, by the seed."""

    p: float = 0.3  # the probability of each link

    def graph(self, peers: int, seed: int) -> nx.Graph:
        if not 0 < self.p <= 1:
            raise UserError(f"peers.p={self.p}: must be above 0 and at most 1")
        return _connected(lambda draw: nx.gnp_random_graph(peers, self.p, draw), self, peers, seed)


@dataclass(frozen=True, kw_only=True)
class SmallWorld(Fixed):
    """A ring lattice of which some links lead elsewhere (Watts and Strogatz 1998), by the seed."""

    nearest: int = 4  # neighbours of each peer in the lattice; even
    p: float = 0.1  # the probability that a link leads elsewhere

    def graph(self, peers: int, seed: int) -> nx.Graph:
        if self.nearest % 2 or not 2 <= self.nearest < peers:
            raise UserError(f"peers.nearest={self.nearest}: must be even, at least 2, and below {peers}, the peers")
        if not 0 <= self.p <= 1:
            raise UserError(f"peers.p={self.p}: must be from 0 to 1")
        return _connected(lambda draw: nx.watts_strogatz_graph(peers, self.nearest, self.p, draw), self, peers, seed)


@dataclass(frozen=True, kw_only=True)
class File(Fixed):
    """A list of links: two peers in each line; ``#`` begins a comment."""

    path: str | None = None  # of the file; required

    def graph(self, peers: int, seed: int) -> nx.Graph:
        if self.path is None:
            raise UserError("peers.path: required: the file of the links")
        try:
            lines = Path(self.path).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"peers.path={self.path}: cannot be read: {first_line(error)}") from error
        graph = nx.empty_graph(peers)
        for number, line in enumerate(lines, 1):
            ends = line.partition("#")[0].split()
            if not ends:
                continue
            if len(ends) != 2 or not all(end.isdecimal() for end in ends):
                raise UserError(f"{self.path}: line {number}: must be two numbers of peers, not {line[:40]!r}")
            one, other = map(int, ends)
            if max(one, other) >= peers:
                raise UserError(
                    f"{self.path}: line {number}: there is no peer {max(one, other)}, only 0 to {peers - 1}"
                )
            if one == other:
                raise UserError(f"{self.path}: line {number}: links peer {one} to itself")
            graph.add_edge(one, other)
        return graph


def _connected(draw: Callable[[int], nx.Graph], topology: Fixed, peers: int, seed: int) -> nx.Graph:
    """Return the first connected graph of those drawn by the seed."""
    for attempt in range(ATTEMPTS):
        graph = draw(seeds.number(seed, "graph", type(topology).__name__, attempt) % 2**32)
        if nx.is_connected(graph):
            return graph
    raise UserError(f"peers: none of {ATTEMPTS} such graphs of {peers} peers is connected: more links are required")
