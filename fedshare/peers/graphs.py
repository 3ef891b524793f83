"""Graphs of peers that stay the same in all rounds. This is the only file that uses networkx."""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar

import networkx as nx

from fedshare import seeds
from fedshare.errors import UserError, brief, first_line
from fedshare.peers.around import Mixing
from fedshare.peers.flood import Links
from fedshare.peers.shape import Shape
from fedshare.peers.topology import Topology

ATTEMPTS = 100  # random graphs that are drawn until one is connected
MOST_ARRANGED = 100  # peers that are placed by the links between them; more are placed in a circle


@dataclass(frozen=True, kw_only=True)
class Fixed(Topology):
    """A graph that does not change."""

    def links(self, peers: int, seed: int, round: int) -> Links:
        return _links(self, peers, seed)

    def weights(self, peers: int, seed: int, round: int) -> Mixing:
        return _weights(self, peers, seed)

    def period(self, peers: int) -> int:
        return 1

    def shape(self, peers: int, seed: int) -> Shape:
        links, places = _links(self, peers, seed), nx.circular_layout(range(peers))
        if peers <= MOST_ARRANGED:
            graph = nx.Graph((sender, peer) for peer, senders in enumerate(links) for sender in senders)
            places = nx.kamada_kawai_layout(graph, pos=places)
        at = [[round(float(side), 4) for side in places[peer]] for peer in range(peers)]
        return replace(super().shape(peers, seed), links=links, places=at)

    @abstractmethod
    def graph(self, peers: int, seed: int) -> nx.Graph:
        """Return a graph of the nodes 0 to `peers` - 1. Raises UserError if there is none of so many."""


@cache
def _links(topology: Fixed, peers: int, seed: int) -> Links:
    graph = topology.graph(peers, seed)
    return [sorted(graph.pred[peer] if graph.is_directed() else graph[peer]) for peer in range(peers)]


@lru_cache(maxsize=1)  # a full graph of 1,024 peers has a million weights
def _weights(topology: Fixed, peers: int, seed: int) -> Mixing:
    return Topology.weights(topology, peers, seed, 1)


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
        if peers < 3:
            raise UserError(f"peers=small_world: {peers} peers form no lattice; 3 or more do")
        if self.nearest % 2 or not 2 <= self.nearest < peers:
            raise UserError(f"peers.nearest={self.nearest}: must be even, at least 2, and below {peers}, the peers")
        if not 0 <= self.p <= 1:
            raise UserError(f"peers.p={self.p}: must be from 0 to 1")
        return _connected(lambda draw: nx.watts_strogatz_graph(peers, self.nearest, self.p, draw), self, peers, seed)


@dataclass(frozen=True, kw_only=True)
class File(Fixed):
    """A graph in a file: two peers in each line, ``#`` begins a comment; or, by its suffix, as networkx writes it."""

    READERS: ClassVar[Mapping[str, Callable[[Path, bool], nx.Graph]]] = {
        ".graphml": lambda path, directed: nx.read_graphml(path),
        ".gml": lambda path, directed: nx.read_gml(path),
        ".json": lambda path, directed: _node_link(json.loads(path.read_text())),
        # Its lines do not say whether the graph is directed.
        ".adjlist": lambda path, directed: nx.read_adjlist(path, create_using=nx.DiGraph if directed else nx.Graph),
    }

    path: str | None = None  # of the file; required
    directed: bool = False  # whether links lead from the first peer to the second only

    def graph(self, peers: int, seed: int) -> nx.Graph:
        if self.path is None:
            raise UserError("peers.path: required: the file of the graph")
        graph = nx.empty_graph(peers, nx.DiGraph if self.directed else nx.Graph)
        for place, one, other in self._links(Path(self.path)):
            for end in (one, other):
                if not (end.isdecimal() and len(end) < 10 and int(end) < peers):
                    raise UserError(f"{place}: there is no peer {brief(end, 40)}, only 0 to {peers - 1}")
            if int(one) == int(other):
                raise UserError(f"{place}: links peer {int(one)} to itself")
            graph.add_edge(int(one), int(other))
        return graph

    def _links(self, path: Path) -> Iterator[tuple[str, str, str]]:
        """Yield the place, the sender and the receiver of each link."""
        reader = self.READERS.get(path.suffix.lower())
        try:
            if reader is None:
                yield from _listed(path)
                return
            found = reader(path, self.directed)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"peers.path={path}: cannot be read: {first_line(error)}") from error
        except UserError:
            raise
        except Exception as error:  # the readers raise whatever they meet
            raise UserError(
                f"{path}: holds no graph in the format {path.suffix}: {brief(first_line(error))}"
            ) from error
        if found.is_directed() and not self.directed:
            raise UserError(f"{path}: is a directed graph, which needs peers.directed=true")
        for node in nx.isolates(found):
            raise UserError(f"{path}: peer {brief(str(node), 40)} has no link")
        for one, other in found.to_directed().edges() if self.directed else found.edges():
            yield str(path), str(one), str(other)


def _listed(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match line.partition("#")[0].partition("{")[0].split():  # networkx writes the data of a link in braces
            case []:
                continue
            case [one, other] if one.isdecimal() and other.isdecimal():
                yield f"{path}: line {number}", one, other
            case _:
                raise UserError(f"{path}: line {number}: must be two numbers of peers, not {line[:40]!r}")


def _node_link(data: object) -> nx.Graph:
    if not isinstance(data, dict) or not data.keys() & {"links", "edges"}:
        raise ValueError("must be node-link data, with nodes and edges")
    return nx.node_link_graph(data, edges="links" if "links" in data else "edges")  # links: until networkx 3.3


def _connected(draw: Callable[[int], nx.Graph], topology: Fixed, peers: int, seed: int) -> nx.Graph:
    """Return the first connected graph of those drawn by the seed."""
    for attempt in range(ATTEMPTS):
        graph = draw(seeds.number(seed, "graph", type(topology).__name__, attempt) % 2**32)
        if nx.is_connected(graph):
            return graph
    raise UserError(f"peers: none of {ATTEMPTS} such graphs of {peers} peers is connected: more links are required")
