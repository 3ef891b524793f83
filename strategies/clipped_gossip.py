"""Clipped gossip: peers average with their neighbours, of whom none can move them further than the others do.

He, Karimireddy and Jaggi, "Byzantine-Robust Decentralized Learning via ClippedGossip", 2022, arXiv 2202.01545,
algorithm 1: a peer adds its neighbours' differences from its own model by the graph's weights, each clipped to a
radius. The radius there follows from what is unknown to a peer, the honest neighbours' spread; here it is the distance
of the furthest neighbour but `f`.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.rules.matrix import lengths, moved, updates_of, weighted
from fedshare.state import State
from fedshare.strategies.gossip import Gossip
from fedshare.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class ClippedGossip(Gossip):
    """With a server, differences are those from the model that it sent."""

    f: int = 1  # the neighbours of a peer whose differences are clipped, those that are furthest away

    def __post_init__(self) -> None:
        if self.f < 0:
            raise UserError(f"f={self.f}: must be at least 0")

    def weakness(self, clients: Collection[int]) -> str | None:
        """With one honest neighbour, the radius is at most an honest distance. `clients` include the peer."""
        needed = self.f + 2
        if len(clients) >= needed:
            return None
        return f"clipped gossip of {len(clients)} uploads withstands f={self.f} neighbours only with {needed} or more"

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        return {"params": self._near(state["params"], [upload for _, upload in sorted(uploads.items())])}

    def aggregate_at(self, peer: int, state: State, round: int, uploads: dict[int, Payload]) -> State:
        own = uploads[peer].tensors["params"]
        return {"params": self._near(own, [upload for sender, upload in sorted(uploads.items()) if sender != peer])}

    def _near(self, own: Tensors, others: list[Payload]) -> Tensors:
        """Return `own` plus the clipped differences of the others from it, by their weights; equal ones if unknown."""
        if not others:
            return own
        differences = updates_of([upload.tensors["params"] for upload in others], own)
        weights = torch.tensor([1 / len(others) if u.weight is None else u.weight for u in others], dtype=torch.float64)
        far = lengths(differences, torch.zeros_like(differences[0]))
        radius = far.sort().values[: len(others) - self.f][-1:]
        if not len(radius):  # as many as are distrusted: nobody is trusted
            return own
        return moved(own, weighted(differences, weights * (radius / far).clamp(max=1).nan_to_num(1.0)))
