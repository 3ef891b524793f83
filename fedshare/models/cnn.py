"""The convolutional network of McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks"."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.models import check

KERNEL = 5


class CNN(nn.Module):
    """5x5 convolutions, each followed by 2x2 max pooling and ReLU, and one hidden layer.

    The default has the paper's 1,663,370 parameters on MNIST; with `hidden=2048` and 62 classes it is LEAF's network
    for FEMNIST. Every layer halves height and width; `padding="valid"` first removes 4 from each.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (32, 64),
        hidden: int = 512,
        padding: str = "same",
    ) -> None:
        super().__init__()
        channels, height, width = check.image("CNN", shape)
        check.positive("CNN", classes=classes, widths=widths, hidden=hidden)
        check.choice("CNN", "padding", padding, ["same", "valid"])
        pad = KERNEL // 2 if padding == "same" else 0
        for _ in widths:
            height, width = ((side + 2 * pad - KERNEL + 1) // 2 for side in (height, width))
        if min(height, width) < 1:
            raise UserError(f"CNN: shape {list(shape)} is too small for {len(widths)} layers with padding {padding!r}")
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, KERNEL, padding=pad) for before, after in pairwise([channels, *widths])
        )
        self.fc = nn.Linear(widths[-1] * height * width, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(F.max_pool2d(conv(x), 2))  # ReLU commutes with the maximum; it is cheaper after it
        return self.head(F.relu(self.fc(x.flatten(1))))
