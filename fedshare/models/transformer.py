"""Pre-norm transformer blocks (Vaswani et al. 2017; Xiong et al. 2020), with the parameter names of timm."""

import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.models import check


class Attention(nn.Module):
    """Multi-head self-attention; `mask`, bool ``[batch, 1, 1, length]``, is True at positions to attend to."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention, then a feed-forward layer, each with a norm before it and a residual connection."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, hidden)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), mask, causal))
        return x + self.drop(self.mlp(self.norm2(x)))


def blocks(model: str, depth: int, dim: int, heads: int, mlp_ratio: int, dropout: float = 0.0) -> nn.ModuleList:
    """Return the blocks of `model`; raise `UserError` if they cannot be built."""
    check.positive(model, depth=depth, dim=dim, heads=heads, mlp_ratio=mlp_ratio)
    check.dropout(model, dropout)
    if dim % heads:
        raise UserError(f"{model}: dim is {dim}; allowed with {heads} heads is a multiple of {heads}")
    return nn.ModuleList(Block(dim, heads, mlp_ratio * dim, dropout) for _ in range(depth))


def initialise(module: nn.Module) -> None:
    """Initialise weights from a normal distribution of deviation 0.02, biases with zero; for `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
