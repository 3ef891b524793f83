"""Graphs of peers that are others in each round: few links a round, which reach everyone in time."""

from dataclasses import dataclass

import torch

from fedshare import seeds
from fedshare.peers.flood import Links
from fedshare.peers.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Matching(Topology):
    """Each peer exchanges with one other, drawn anew in each round; of an odd number, one rests."""

    def links(self, peers: int, seed: int, round: int) -> Links:
        order = torch.randperm(peers, generator=seeds.generator(seed, "matching", round)).tolist()
        links: Links = [[] for _ in range(peers)]
        for one, other in zip(order[::2], order[1::2], strict=False):
            links[one], links[other] = [other], [one]
        return links

    def check(self, links: Links) -> None:
        """One round's links need not reach everyone."""


@dataclass(frozen=True, kw_only=True)
class OnePeerExponential(Topology):
    """In round t each peer receives from the one 2^(t - 1) before it, modulo the powers of two below their number.

    Directed, with weights of a half (Ying et al. 2021): averages exactly after log2 of the number, if a power of two.
    """

    def links(self, peers: int, seed: int, round: int) -> Links:
        jump = 2 ** ((round - 1) % self.period(peers))
        return [[(peer - jump) % peers] for peer in range(peers)]

    def period(self, peers: int) -> int:
        return (peers - 1).bit_length()
