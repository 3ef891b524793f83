"""Llama 2's architecture (Touvron et al. 2023, arXiv 2307.09288) in small sizes: a causal language model."""

import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.models import check
from fedshare.models.llama_block import Block, RMSNorm, rotary


class Llama(nn.Module):
    """Tokens, int64 ``[batch, length]`` of up to `length`, to logits ``[batch, length, classes]``.

    A position attends to itself and earlier ones, so padding at the end does not affect other positions. There is no
    `head`: the embedding is also the output layer, one parameter with one name, and so `classes` is `vocabulary`.
    Layers inside the blocks have Hugging Face's names, where PEFT looks for them.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        vocabulary: int,
        length: int,
        classes: int,
        dim: int = 64,
        depth: int = 5,
        heads: int = 8,
        kv_heads: int = 4,
        hidden: int = 172,
    ) -> None:
        super().__init__()
        check.positive("Llama", vocabulary=vocabulary, length=length, classes=classes)
        check.positive("Llama", dim=dim, depth=depth, heads=heads, kv_heads=kv_heads, hidden=hidden)
        if classes != vocabulary:
            raise UserError(
                f"Llama: classes is {classes}; allowed is the vocabulary, {vocabulary}: its logits are tokens"
            )
        if dim % (2 * heads):
            raise UserError(f"Llama: dim is {dim}; allowed with {heads} heads is a multiple of {2 * heads}")
        if heads % kv_heads:
            raise UserError(f"Llama: kv_heads is {kv_heads}; allowed is a divisor of heads, {heads}")
        self.embed = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, kv_heads, hidden) for _ in range(depth))
        self.norm = RMSNorm(dim)
        cos, sin = rotary(length, dim // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # projections into the residual stream start smaller, as in GPT-2
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length, most = tokens.shape[1], len(self.cos)
        if length > most:
            raise UserError(f"Llama: a text has {length} tokens; allowed is up to length, {most}")
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)  # whole tables: prompt tuning may prepend vectors
        return F.linear(self.norm(x), self.embed.weight)
