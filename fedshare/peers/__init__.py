"""Peers without a server: the graphs over which they exchange uploads, and the place where each aggregates."""

from fedshare.peers.decentralised import Decentralised
from fedshare.peers.flood import Flood
from fedshare.peers.flooding import Flooding
from fedshare.peers.shape import Shape
from fedshare.peers.topology import Peering, Served, Topology

__all__ = ["Decentralised", "Flood", "Flooding", "Peering", "Served", "Shape", "Topology"]
