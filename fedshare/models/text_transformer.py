"""A small transformer for text classification or language modelling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.models import check
from fedshare.models.transformer import blocks, initialise


class TextTransformer(nn.Module):
    """Tokens, int64 ``[batch, length]`` and 0 for padding at the end, to logits.

    An encoder by default: ``[batch, classes]`` from the mean over a text's own tokens, ignoring padding. With `causal`
    it is a language model: ``[batch, length, classes]``, each position attending to itself and earlier ones; then 0 is
    an ordinary token, because padding at the end cannot affect earlier positions.

    Positions are learned, for texts of up to `length` tokens. `head` and `embed` share no weights, so that every
    parameter has one name.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        classes: int,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        check.positive("TextTransformer", vocabulary=vocabulary, length=length, classes=classes)
        built = blocks("TextTransformer", depth, dim, heads, mlp_ratio, dropout)
        self.causal = causal
        self.embed = nn.Embedding(vocabulary, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, length, dim))
        self.drop = nn.Dropout(dropout)
        self.blocks = built
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        self.apply(initialise)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length, most = tokens.shape[1], self.pos_embed.shape[1]
        if length > most:
            raise UserError(f"TextTransformer: a text has {length} tokens; allowed is up to length, {most}")
        x = self.drop(self.embed(tokens) + self.pos_embed[:, :length])
        if self.causal:
            for block in self.blocks:
                x = block(x, causal=True)
            return self.head(self.norm(x))
        # An empty text counts as one token of padding: the mean of nothing is not a number.
        seen = F.pad(tokens[:, 1:] != 0, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, mask=seen[:, None, None])
        weight = seen.to(x.dtype)[:, :, None]
        return self.head((self.norm(x) * weight).sum(1) / weight.sum(1))
