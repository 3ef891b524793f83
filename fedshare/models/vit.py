"""The vision transformer of Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.models import check
from fedshare.models.transformer import blocks, initialise


class PatchEmbed(nn.Module):
    """Map images to one vector per patch, ``[batch, patches, dim]``."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Patches, a class token and learned positions through pre-norm blocks; `head` reads the class token.

    Parameters have timm's names and shapes: ``ViT([3, 224, 224], 1000, patch=16, dim=768, depth=12, heads=12)`` loads
    the weights of `vit_base_patch16_224`, and code that relies on those names (PEFT) works here.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        patch: int = 4,
        dim: int = 128,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        channels, height, width = check.image("ViT", shape)
        check.positive("ViT", classes=classes, patch=patch)
        if height % patch or width % patch:
            raise UserError(f"ViT: patch is {patch}; allowed is a divisor of the image's sides, {height} and {width}")
        built = blocks("ViT", depth, dim, heads, mlp_ratio)
        self.patch_embed = PatchEmbed(channels, patch, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + height // patch * (width // patch), dim))
        self.blocks = built
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
