"""Feature skew: clients have the same class frequencies, but different transformations of the images."""

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedshare.data.dataset import Dataset, Examples
from fedshare.data.partition.base import Split, not_negative
from fedshare.data.partition.simple import Iid
from fedshare.errors import UserError
from fedshare.seeds import generator


@dataclass(frozen=True, kw_only=True)
class FeatureSkew(Iid):
    """Equal random parts; each client's training and test images are rotated, tinted and noisy in its own way.

    What a client sees of an image depends only on the seed, the client and the image. Rotation by client follows Ghosh
    et al. 2020, noise that grows with the client's id NIID-Bench (Li et al. 2022); channel gains model other cameras.
    """

    rotation: float = 90.0  # degrees between one client and the next, counter-clockwise; client 0 sees images upright
    noise: float = 0.0  # standard deviation of the last client's Gaussian noise, as a share of the range of a pixel
    colour: float = 0.0  # a client's channel gains lie between 1 - colour and 1 + colour

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rotation", "noise", "colour"):
            not_negative(name, getattr(self, name))

    def split(self, dataset: Dataset, seed: int) -> Split:
        if dataset.pool.single.dtype != torch.uint8 or dataset.pool.single.ndim != 4:
            raise UserError(f"partition=feature_skew needs images; data={dataset.name} has none")
        return super().split(dataset, seed)

    def view(self, client: int, examples: Examples, seed: int) -> Examples:
        x = turn(examples.single, client * self.rotation % 360)
        if self.colour:
            gains = torch.rand(x.shape[1], 1, 1, generator=generator(seed, "partition", "colour", client)) * 2 - 1
            x = to_uint8(x * (1 + self.colour * gains))
        if self.noise and len(x):
            deviation = 255 * self.noise * (client + 1) / self.clients
            x = to_uint8(x + deviation * torch.stack([static(image, (seed, client)) for image in x]))
        return replace(examples, x=x)


def to_uint8(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def static(image: Tensor, key: tuple[int, int]) -> Tensor:
    """Return Gaussian noise that is the same wherever the image appears: its own bytes seed the stream."""
    checksum = zlib.crc32(np.ascontiguousarray(image.numpy()).data)
    return torch.randn(image.shape, generator=generator(key[0], "partition", "noise", key[1], checksum))


def turn(x: Tensor, degrees: float) -> Tensor:
    """Return images ``[n, channels, height, width]`` rotated counter-clockwise, cropped; empty corners are black."""
    if not len(x) or degrees == 0:
        return x
    height, width = x.shape[2:]
    if degrees == 180 or (degrees % 90 == 0 and height == width):
        return torch.rot90(x, int(degrees // 90), (2, 3)).contiguous()  # exact: no interpolation
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    grid = functional.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return to_uint8(functional.grid_sample(x.float(), grid, align_corners=False))
