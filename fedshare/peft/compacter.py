"""Compacter: adapters of low-rank hypercomplex layers (Karimi Mahabadi et al. 2021, arXiv 2106.04647)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.peft.adapter import Bottleneck, attach, hidden_size
from fedshare.peft.method import Method, blocks, width


class Hypercomplex(nn.Module):
    """A linear layer whose matrix is ``sum_i rule_i (x) (left_i right_i)``, x the Kronecker product (equation 5).

    `rule` is ``[n, n, n]`` and shared by all layers, `left` ``[n, inputs/n, rank]``, `right` ``[n, rank, outputs/n]``.
    """

    def __init__(self, rule: nn.Parameter, inputs: int, outputs: int, rank: int, zero: bool) -> None:
        super().__init__()
        n = len(rule)
        self.rule = rule
        self.left = nn.Parameter(torch.randn(n, inputs // n, rank))
        self.right = nn.Parameter(torch.randn(n, rank, outputs // n) * (0 if zero else (rank * inputs) ** -0.5))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.rule)
        # x M computed by parts: x as [..., n, inputs / n], each factor of the Kronecker product on one of the two axes.
        y = torch.einsum("...ac,nck,nkd,nab->...bd", x.unflatten(-1, (n, -1)), self.left, self.right, self.rule)
        return y.flatten(-2) + self.bias


@dataclass(frozen=True, kw_only=True)
class Compacter(Method):
    """A bottleneck of hypercomplex layers after each block, added to the block's output."""

    group: ClassVar[str] = "compacter"
    reduction: int = 8  # a block's vectors are so many times longer than the bottleneck's
    n: int = 4  # terms of the sum, and the side of its shared matrices; divides both lengths
    rank: int = 1  # of the other matrices
    blocks: str = "blocks"  # the model's sequence of transformer blocks

    def __post_init__(self) -> None:
        for name in ("reduction", "n", "rank"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, not {value}")

    def insert(self, model: nn.Module) -> nn.Module:
        layers = blocks(model, self.blocks)
        dim = width(layers[0])
        hidden = hidden_size(dim, self.reduction)
        if dim % self.n or hidden % self.n:
            raise UserError(
                f"peft.n={self.n}: must divide the lengths of the vectors, {dim}, and of the bottleneck, {hidden}"
            )
        rule = nn.Parameter(torch.randn(self.n, self.n, self.n) * self.n**-0.5)
        attach(
            layers,
            [
                Bottleneck(
                    Hypercomplex(rule, dim, hidden, self.rank, zero=False),
                    Hypercomplex(rule, hidden, dim, self.rank, zero=True),
                )
                for _ in layers
            ],
        )
        return model

    def trains(self, name: str) -> bool:
        return ".adapter." in name
