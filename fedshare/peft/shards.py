"""Mixture of Shards: low-rank updates of many layers, assembled from one pool of shards.

Wang et al. 2024, arXiv 2410.00938. Layers of equal shape share a pool. The matrices of a layer's update, of rank
`rank`, are assembled vector by vector and shard by shard by indices that are drawn once and never change. So there are
as many trained numbers as in a LoRA of rank `budget`, while every layer's update has the higher rank.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.peft.method import Method, linears


class Pool(nn.Module):
    """Shards of ``down`` vectors, ``[pieces, inputs / shards]``, and of ``up`` vectors, which are initially zero."""

    def __init__(self, pieces: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(pieces, inputs))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.up = nn.Parameter(torch.zeros(pieces, outputs))


class Mixture(nn.Module):
    """One layer's choice from the pool: the indices of its vectors' shards, ``[rank, shards]`` for down and for up.

    The two are drawn independently ("pair dissociation"); the first `private` vectors use shards that no other layer
    uses ("shard privatisation").
    """

    chosen_down: Tensor
    chosen_up: Tensor

    def __init__(self, pool: Pool, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.pool, self.scale = pool, scale
        self.register_buffer("chosen_down", down)
        self.register_buffer("chosen_up", up)

    def forward(self, x: Tensor) -> Tensor:
        down = self.pool.down[self.chosen_down].flatten(1)  # [rank, inputs]
        up = self.pool.up[self.chosen_up].flatten(1)  # [rank, outputs]
        return (x @ down.T) @ up * self.scale


@dataclass(frozen=True, kw_only=True)
class Shards(Method):
    group: ClassVar[str] = "shards"
    targets: list[str] | tuple[str, ...] = ("qkv",)  # the last names of the linear layers that are updated
    budget: int = 2  # trained numbers: those of a LoRA of this rank
    rank: int = 4  # of each layer's update
    private: int = 1  # how many of its vectors no other layer shares
    shards: int = 4  # pieces of a vector; divides the layers' lengths
    alpha: float = 16.0  # the update is scaled by alpha / rank

    def __post_init__(self) -> None:
        if not 0 <= self.private <= self.budget <= self.rank:
            given = f"private={self.private}, budget={self.budget}, rank={self.rank}"
            raise UserError(f"{given}: must be 0 <= private <= budget <= rank")
        if self.shards < 1:
            raise UserError(f"shards must be at least 1, not {self.shards}")

    def insert(self, model: nn.Module) -> nn.Module:
        alike = defaultdict[tuple[int, int], list[nn.Linear]](list)
        for name, layer in linears(model, self.targets):
            shape = (layer.in_features, layer.out_features)
            if shape[0] % self.shards or shape[1] % self.shards:
                raise UserError(
                    f"peft.shards={self.shards}: must divide the lengths of {name}, {shape[0]} and {shape[1]}"
                )
            alike[shape].append(layer)
        for (inputs, outputs), layers in alike.items():
            common = (self.budget - self.private) * len(layers) * self.shards
            if common < (self.rank - self.private) * self.shards:
                most = self.private + common // self.shards
                shared = f"{len(layers)} layers of {inputs} to {outputs} share too few pieces for it"
                raise UserError(f"peft.rank={self.rank}: {shared}; allowed is up to {most}")
            pool = Pool(self.budget * len(layers) * self.shards, inputs // self.shards, outputs // self.shards)
            for number, layer in enumerate(layers):
                down, up = self._choose(number, common), self._choose(number, common)
                layer.mixture = Mixture(pool, down, up, self.alpha / self.rank)
                layer.register_forward_hook(_mixed)
        return model

    def _choose(self, layer: int, common: int) -> Tensor:
        """Return indices into the pool, in which the common shards come first, then each layer's own."""
        own = common + layer * self.private * self.shards + torch.arange(self.private * self.shards)
        drawn = torch.randperm(common)[: (self.rank - self.private) * self.shards]
        return torch.cat([own, drawn]).view(self.rank, self.shards)

    def trains(self, name: str) -> bool:
        return ".mixture." in name


def _mixed(layer: Any, args: Any, output: Tensor) -> Tensor:
    return output + layer.mixture(args[0])
