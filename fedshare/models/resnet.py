"""The residual networks for small images of He et al. 2016, "Deep Residual Learning", section 4.2."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.models import check

Norm = Callable[[int], nn.Module]


class Pad(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the new channels, half of them before the old ones."""

    def __init__(self, new: int, stride: int) -> None:
        super().__init__()
        self.new, self.stride = new, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = norm(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = (
                Pad(after - before, stride)
                if shortcut == "A"
                else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem and one stage per width; each stage but the first halves the resolution.

    `depth` counts the stem, two layers per block and the head: 8, 14, 20, 26, ... for the paper's three widths.
    `shortcut` is used where the shape changes: "A" pads with zeros, as the paper does for small images, and has no
    parameters; "B" projects with a 1x1 convolution. `norm` is "group", with `groups` per layer, or "batch", the
    paper's: its running statistics are buffers, not parameters, and differ between clients whose data differ.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: str = "A",
        norm: str = "group",
        groups: int = 8,
    ) -> None:
        super().__init__()
        channels, _, _ = check.image("ResNet", shape)
        check.positive("ResNet", classes=classes, depth=depth, widths=widths, groups=groups)
        check.choice("ResNet", "shortcut", shortcut, ["A", "B"])
        check.choice("ResNet", "norm", norm, ["group", "batch"])
        blocks, rest = divmod(depth - 2, 2 * len(widths))
        if blocks < 1 or rest:
            step = 2 * len(widths)
            raise UserError(f"ResNet: depth is {depth}; allowed with {len(widths)} widths is {step}n + 2, n at least 1")
        if norm == "group" and any(width % groups for width in widths):
            raise UserError(f"ResNet: {groups} groups do not divide every one of the widths {list(widths)}")
        if shortcut == "A" and list(widths) != sorted(widths):
            raise UserError(f"ResNet: widths are {list(widths)}; shortcut 'A' allows no width less than the one before")

        def normalise(width: int) -> nn.Module:
            return nn.GroupNorm(groups, width) if norm == "group" else nn.BatchNorm2d(width)

        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = normalise(widths[0])
        self.blocks = nn.Sequential()
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(Block(before, width, stride, normalise, shortcut))
                before = width
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))
