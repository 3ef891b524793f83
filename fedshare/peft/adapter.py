"""Small layers after each block (Houlsby et al. 2019, arXiv 1902.00751)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.peft.method import Method, blocks, width


class Bottleneck(nn.Module):
    """``up(gelu(down(x)))``; `up` is initially zero, so adding it does not change the model's outputs."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up = down, up

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """A bottleneck after each block, added to the block's output (Houlsby et al. 2019, arXiv 1902.00751)."""

    group: ClassVar[str] = "adapter"
    reduction: int = 8  # a block's vectors are so many times longer than the bottleneck's
    shared: bool = False  # true: all blocks share one bottleneck, as in FedPEFT's released code
    init: Literal["up", "both"] = "up"  # what begins at zero; both, as in that code: then only the last bias ever moves
    blocks: str = "blocks"  # the model's sequence of transformer blocks

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise UserError(f"reduction must be at least 1, not {self.reduction}")

    def insert(self, model: nn.Module) -> nn.Module:
        layers = blocks(model, self.blocks)
        made: list[nn.Module] = [self._bottleneck(layers[0])]
        made += made * (len(layers) - 1) if self.shared else [self._bottleneck(block) for block in layers[1:]]
        attach(layers, made)
        return model

    def _bottleneck(self, block: nn.Module) -> Bottleneck:
        dim = width(block)
        down, up = nn.Linear(dim, hidden_size(dim, self.reduction)), nn.Linear(hidden_size(dim, self.reduction), dim)
        nn.init.kaiming_normal_(down.weight, nonlinearity="relu")
        for zero in (down.bias, up.weight, up.bias, *([down.weight] if self.init == "both" else [])):
            nn.init.zeros_(zero)
        return Bottleneck(down, up)

    def trains(self, name: str) -> bool:
        return ".adapter." in name


def hidden_size(dim: int, reduction: int) -> int:
    """Return the hidden size of a bottleneck."""
    return max(1, dim // reduction)


def attach(layers: list[nn.Module], adapters: list[nn.Module]) -> None:
    """Add to each block's output its adapter's output."""
    for block, adapter in zip(layers, adapters, strict=True):
        block.adapter = adapter
        block.register_forward_hook(_adapted)


def _adapted(block: Any, args: Any, output: Any) -> Any:
    """Return the adapted output; in some libraries a block returns a tuple whose first item is the hidden state."""
    if isinstance(output, tuple):
        return (output[0] + block.adapter(output[0]), *output[1:])
    return output + block.adapter(output)
