"""Lies about one's own update, by those who see no other."""

import math
from dataclasses import dataclass

import torch

from fedshare.attacks.attack import Attack, Sight
from fedshare.attacks.limits import limit
from fedshare.attacks.vectors import normal, rms, uniform
from fedshare.tensors import Tensors, scale


@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """The opposite of what was learnt."""

    factor: float = 1.0  # how many times as long

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "factor")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return scale(update, -self.factor)


@dataclass(frozen=True, kw_only=True)
class SignRandomise(Attack):
    """Each element with a sign at random."""

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        drawn = uniform(update, sight.generator("sign"))
        return {name: torch.where(drawn[name] < 0.5, tensor, -tensor) for name, tensor in update.items()}


@dataclass(frozen=True, kw_only=True)
class Rescale(Attack):
    """What was learnt times one factor a round, drawn evenly."""

    most: float = 100.0  # of the factor's magnitude: it is from -most to most

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "most")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        drawn = float(torch.rand((), generator=sight.generator("factor"), dtype=torch.float64))
        return scale(update, self.most * (2 * drawn - 1))


@dataclass(frozen=True, kw_only=True)
class ValueInvert(Attack):
    """Elements x, chosen at random, become 1 / (x + 1e-10): what is almost nothing becomes huge."""

    share: float = 0.5  # the probability of each element

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, 1, "share")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        drawn = uniform(update, sight.generator("choice"))
        return {name: torch.where(drawn[name] < self.share, 1 / (x + 1e-10), x) for name, x in update.items()}


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Normal noise in place of what was learnt, and about as long: its deviation is the root mean square of that."""

    scale: float = 1.0  # how many times as long

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "scale")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return normal(update, self.scale * rms(update), sight.generator("noise"))


@dataclass(frozen=True, kw_only=True)
class NonFinite(Attack):
    """No numbers at all."""

    infinite: bool = False  # infinity, and not NaN
    everywhere: bool = True  # in place of all elements; false: of the first one

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        value = math.inf if self.infinite else math.nan
        if self.everywhere:
            return {name: torch.full_like(tensor, value) for name, tensor in update.items()}
        forged = {name: tensor.clone() for name, tensor in update.items()}
        filled = [tensor for tensor in forged.values() if tensor.numel()]
        for tensor in filled[:1]:
            tensor.view(-1)[0] = value
        return forged
