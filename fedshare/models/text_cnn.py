"""The text classifier of Kim 2014, "Convolutional Neural Networks for Sentence Classification" (its CNN-rand)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.models import check


class TextCNN(nn.Module):
    """Convolutions of several widths over embedded tokens, the maximum of each over time, dropout.

    Tokens are int64 ``[batch, length]``, of any length, with 0 for padding at the end. A window may extend beyond
    either end of the text but must overlap it, so padding changes nothing. RFFL's network has `widths=[3, 3, 3]`.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        dim: int = 300,
        filters: int = 128,
        widths: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check.positive("TextCNN", vocabulary=vocabulary, classes=classes, dim=dim, filters=filters, widths=widths)
        check.dropout("TextCNN", dropout)
        self.embed = nn.Embedding(vocabulary, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, filters, width, padding=width - 1) for width in widths)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(widths), classes)
        nn.init.uniform_(self.embed.weight, -0.25, 0.25)

    def forward(self, tokens: Tensor) -> Tensor:
        text = tokens != 0
        # Zeroed here, not by `padding_idx`, because noise or a perturbation of all parameters would change that row.
        x = (self.embed(tokens) * text[:, :, None]).transpose(1, 2).contiguous()
        most = [self.largest(conv(x), text) for conv in self.convs]
        return self.head(self.drop(F.relu(torch.cat(most, 1))))

    @staticmethod
    def largest(windows: Tensor, text: Tensor) -> Tensor:
        """Return the maximum over the windows that begin in the text or before it, ``[batch, filters]``."""
        before = windows.shape[2] - text.shape[1]
        inside = F.pad(text, (before, 0), value=True)[:, None]
        return windows.masked_fill(~inside, float("-inf")).max(2).values
