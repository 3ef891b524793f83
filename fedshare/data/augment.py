"""Augmentation: small random changes of training examples, so that a model does not memorise them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedshare.errors import UserError


@dataclass(frozen=True)
class CropFlip:
    """Shift each image by up to `padding` pixels per side and, if `flip`, mirror it with probability one half.

    Crops with four pixels of padding and mirroring are the usual augmentation for CIFAR (He et al. 2016, arXiv
    1512.03385). Padding is zero, the mean colour of normalised images. Inputs that are not images are unchanged.
    """

    padding: int = 4  # pixels
    flip: bool = True  # left and right; not for digits or letters

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UserError(f"padding must be at least 0, not {self.padding}")

    def __call__(self, inputs: Tensor, random: torch.Generator) -> Tensor:
        """Return images ``[batch, channels, height, width]`` augmented, in the same size; `random` is on the CPU."""
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
