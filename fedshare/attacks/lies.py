"""Forged updates of adversaries that see no other update."""

import math
from dataclasses import dataclass

import torch

from fedshare.attacks.attack import Attack, Sight
from fedshare.attacks.limits import limit
from fedshare.attacks.vectors import normal, rms, uniform
from fedshare.tensors import Tensors, scale


@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """The negated update."""

    factor: float = 1.0  # scale of the negated update

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "factor")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return scale(update, -self.factor)


@dataclass(frozen=True, kw_only=True)
class SignRandomise(Attack):
    """The update with a random sign for each element."""

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        drawn = uniform(update, sight.generator("sign"))
        return {name: torch.where(drawn[name] < 0.5, tensor, -tensor) for name, tensor in update.items()}


@dataclass(frozen=True, kw_only=True)
class Rescale(Attack):
    """The update times one random factor per round, drawn uniformly."""

    most: float = 100.0  # the factor is from -most to most

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "most")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        drawn = float(torch.rand((), generator=sight.generator("factor"), dtype=torch.float64))
        return scale(update, self.most * (2 * drawn - 1))


@dataclass(frozen=True, kw_only=True)
class ValueInvert(Attack):
    """Randomly chosen elements x become 1 / (x + 1e-10): tiny values become huge."""

    share: float = 0.5  # probability for each element

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, 1, "share")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        drawn = uniform(update, sight.generator("choice"))
        return {name: torch.where(drawn[name] < self.share, 1 / (x + 1e-10), x) for name, x in update.items()}


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Normal noise instead of the update, of about its length: the deviation is the update's root mean square."""

    scale: float = 1.0  # scale of the noise

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "scale")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return normal(update, self.scale * rms(update), sight.generator("noise"))


@dataclass(frozen=True, kw_only=True)
class NonFinite(Attack):
    """NaN or infinity instead of numbers."""

    infinite: bool = False  # infinity instead of NaN
    everywhere: bool = True  # replace all elements; false: the first one only

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        value = math.inf if self.infinite else math.nan
        if self.everywhere:
            return {name: torch.full_like(tensor, value) for name, tensor in update.items()}
        forged = {name: tensor.clone() for name, tensor in update.items()}
        filled = [tensor for tensor in forged.values() if tensor.numel()]
        for tensor in filled[:1]:
            tensor.view(-1)[0] = value
        return forged
