"""Changing training examples a little, so that a model does not learn them by heart."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedshare.errors import UserError


@dataclass(frozen=True)
class CropFlip:
    """Each image is shifted by up to `padding` pixels a side and, if `flip`, mirrored half of the time.

    The crop of four pixels and the mirror image are the usual ones for CIFAR (He et al. 2016, arXiv 1512.03385). What
    comes in from outside is zero, the mean colour of normalised images. Inputs that are no images stay as they are.
    """

    padding: int = 4  # pixels
    flip: bool = True  # left and right; not for digits or letters

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UserError(f"padding must be at least 0, not {self.padding}")

    def __call__(self, inputs: Tensor, random: torch.Generator) -> Tensor:
        """Images ``[batch, channels, height, width]`` to as many of the same size; `random` is on the CPU."""
        if inputs.ndim != 4:
            return inputs
        count, channels, height, width = inputs.shape
        most = 2 * self.padding + 1
        down, right = torch.randint(most, (2, count, 1), generator=random)
        rows = down + torch.arange(height)
        columns = right + torch.arange(width)
        if self.flip:
            columns = torch.where(torch.rand(count, 1, generator=random) < 0.5, columns.flip(1), columns)
        padded = F.pad(inputs, [self.padding] * 4)
        image = torch.arange(count).view(-1, 1, 1, 1)
        channel = torch.arange(channels).view(1, -1, 1, 1)
        places = (image, channel, rows[:, None, :, None], columns[:, None, None, :])
        return padded[tuple(place.to(inputs.device) for place in places)]
