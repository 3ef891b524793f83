"""Learned tokens added to the input's: visual prompt tuning (Jia et al. 2022, arXiv 2203.12119)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.peft.method import Method, blocks, width


class Tokens(nn.Module):
    """`count` vectors of length `dim`, Xavier-uniform for a layer of `fan` inputs (section 4.1's codebase)."""

    def __init__(self, count: int, dim: int, fan: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, dim))
        bound = (6 / (fan + dim)) ** 0.5
        nn.init.uniform_(self.tokens, -bound, bound)
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> Tensor:
        return self.dropout(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Prompt(Method):
    """Insert `count` tokens before each block (deep) or before the first (shallow), after the class token.

    Without a class token they come first. They are removed after the last block, so pooling does not include them.
    """

    group: ClassVar[str] = "prompt"
    count: int = 10  # tokens
    deep: bool = True  # new tokens before every block, replacing the previous ones; false: before the first only
    dropout: float = 0.1  # of the tokens
    blocks: str = "blocks"  # the model's sequence of transformer blocks

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"count must be at least 0, not {self.count}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), not {self.dropout}")

    def insert(self, model: nn.Module) -> nn.Module:
        layers = blocks(model, self.blocks)
        if not self.count:
            return model
        first = int(hasattr(model, "cls_token"))
        dim = width(layers[0])
        patch = getattr(getattr(model, "patch_embed", None), "proj", None)
        fan = patch.weight[0].numel() if isinstance(patch, nn.Conv2d) else dim
        for position, block in enumerate(layers):
            if self.deep or not position:
                block.prompt = Tokens(self.count, dim, fan, self.dropout)
            replaced = self.count if position and self.deep else 0
            kept = self.count if position and not self.deep else 0
            enter = partial(_enter, first=first, replaced=replaced, kept=kept)
            block.register_forward_pre_hook(enter, with_kwargs=True)
        layers[-1].register_forward_hook(partial(_leave, first=first, count=self.count))
        return model

    def trains(self, name: str) -> bool:
        return ".prompt." in name


def _enter(block: Any, args: Any, kwargs: Any, first: int, replaced: int, kept: int) -> tuple[Any, Any]:
    """Return a block's inputs with its tokens inserted, and a mask under which all positions attend to them."""
    x, *rest = args
    count = kept
    if hasattr(block, "prompt"):
        tokens = block.prompt()
        count = len(tokens)
        x = torch.cat([x[:, :first], tokens.expand(len(x), -1, -1), x[:, first + replaced :]], 1)
    masks = {
        name: F.pad(mask, (count, 0), value=True)
        for name, mask in kwargs.items()
        if name.endswith("mask") and isinstance(mask, Tensor)
    }
    return (x, *rest), kwargs | masks


def _leave(_: nn.Module, args: Any, x: Tensor, first: int, count: int) -> Tensor:
    return torch.cat([x[:, :first], x[:, first + count :]], 1)
