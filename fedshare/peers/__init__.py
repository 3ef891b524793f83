"""Peers without a server: the graphs over which they exchange uploads, and the place where each aggregates."""

from fedshare.peers.decentralised import Decentralised
from fedshare.peers.topology import Peering, Served, Topology

__all__ = ["Decentralised", "Peering", "Served", "Topology"]
