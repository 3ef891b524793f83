"""Colluding adversaries: they see all honest uploads before they agree on their own.

Below, m is the mean of the honest updates, and s their standard deviation, element by element.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, get_args

import torch

from fedshare.attacks.attack import Attack, Sight
from fedshare.attacks.data import LabelFlip
from fedshare.attacks.limits import limit
from fedshare.attacks.vectors import deviation, normal, rms
from fedshare.client import Client
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.tensors import Tensors, add, dot, mean, norm, scale, subtract

Updates = dict[int, Tensors]
Direction = Literal["std", "unit", "sign"]


@dataclass(frozen=True, kw_only=True)
class ALIE(Attack):
    """``m - z * s``: a small shift is enough if honest clients differ by more."""

    z: float | None = None  # null: the largest that leaves a majority with honest clients; below 0 it goes beyond m

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z is not None:
            limit(self, -math.inf, math.inf, "z")

    def collude(self, honest: Updates, own: Updates, generator: torch.Generator) -> Updates:
        updates = list(honest.values())
        z = largest_z(len(honest), len(own)) if self.z is None else self.z
        return dict.fromkeys(own, add(mean(updates), deviation(updates), alpha=-z))


def largest_z(honest: int, liars: int) -> float:
    """Return the largest z at which enough honest updates lie farther from the mean for a majority with the liars."""
    needed = max((honest + liars) // 2 + 1 - liars, 1)
    share = max((honest - needed) / honest, 0.5)
    return NormalDist().inv_cdf(share)


@dataclass(frozen=True, kw_only=True)
class IPM(Attack):
    """``-factor * m``, so that the inner product of the true mean and the average is negative."""

    factor: float = 1.0  # from about 0.1, which passes robust means, to 10, which reverses a plain mean

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "factor")

    def collude(self, honest: Updates, own: Updates, generator: torch.Generator) -> Updates:
        return dict.fromkeys(own, scale(mean(list(honest.values())), -self.factor))


@dataclass(frozen=True, kw_only=True)
class Away(Attack, ABC):
    """As far from m as possible without being an outlier: ``m + gamma * p`` with the largest allowed gamma.

    p is ``-s`` (std), ``-m / |m|`` (unit) or ``-sign(m)`` (sign). Gamma, usually searched by bisection, is a root of a
    quadratic.
    """

    direction: Direction = "std"  # std, unit or sign

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction not in get_args(Direction):
            raise UserError(f"direction={self.direction}: must be {', '.join(get_args(Direction))}")

    def collude(self, honest: Updates, own: Updates, generator: torch.Generator) -> Updates:
        updates = list(honest.values())
        middle = mean(updates)
        if self.direction == "std":
            step = scale(deviation(updates), -1)
        elif self.direction == "unit":
            step = scale(middle, -1 / (norm(middle) or 1))
        else:
            step = {name: -tensor.sign() for name, tensor in middle.items()}
        offsets = [subtract(middle, update) for update in updates]
        apart = [[_square(subtract(a, b)) for b in updates] for a in updates]
        gamma = self.farthest(dot(step, step), [dot(step, o) for o in offsets], [_square(o) for o in offsets], apart)
        return dict.fromkeys(own, add(middle, step, alpha=gamma))

    @abstractmethod
    def farthest(
        self, step: float, along: Sequence[float], squares: Sequence[float], apart: Sequence[Sequence[float]]
    ) -> float:
        """Return the largest allowed gamma.

        The squared distance of ``m + gamma * p`` to honest update i is ``squares[i] + 2 * gamma * along[i]
        + gamma^2 * step``, and between two honest ones ``apart[i][j]``.
        """


class MinMax(Away):
    """The distance to any honest update is at most the largest distance between two of them."""

    def farthest(
        self, step: float, along: Sequence[float], squares: Sequence[float], apart: Sequence[Sequence[float]]
    ) -> float:
        most = max(map(max, apart))
        return min(_root(step, b, c - most) for b, c in zip(along, squares, strict=True))


class MinSum(Away):
    """The sum of squared distances to all honest updates is at most the largest such sum of an honest update."""

    def farthest(
        self, step: float, along: Sequence[float], squares: Sequence[float], apart: Sequence[Sequence[float]]
    ) -> float:
        return _root(len(along) * step, math.fsum(along), math.fsum(squares) - max(map(math.fsum, apart)))


def _square(a: Tensors) -> float:
    return dot(a, a)


def _root(a: float, b: float, c: float) -> float:
    """Return the largest x with ``a x^2 + 2 b x + c <= 0``, or 0 if a is 0; a >= 0, and c <= 0 up to rounding."""
    return (math.sqrt(b * b - a * min(c, 0.0)) - b) / a if a > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Mimic(Attack):
    """A copy of one honest client's update, which then counts more often than the others."""

    victim: int | None = None  # its id; null, or if it is absent: the first honest client

    def collude(self, honest: Updates, own: Updates, generator: torch.Generator) -> Updates:
        victim = self.victim if self.victim in honest else min(honest)
        return dict.fromkeys(own, honest[victim])


@dataclass(frozen=True, kw_only=True)
class Sybils(Attack):
    """One liar with several identities: all send the first one's update, each with a little noise."""

    of: Attack  # the attack of that liar
    jitter: float = 0.0  # noise deviation, relative to the root mean square of the update; 0: exact copies

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "jitter")
        if not isinstance(self.of, Attack):
            raise UserError(f"of: is a {type(self.of).__name__}, not an attack")

    @property
    def trains(self) -> bool:
        return self.of.trains

    def suits(self, example: Examples, classes: int) -> None:
        self.of.suits(example, classes)

    def at(self, round: int) -> Attack:
        return replace(self, of=self.of.at(round))

    def poison(self, examples: Examples, generator: torch.Generator) -> Examples:
        return self.of.poison(examples, generator)

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return self.of.forge(update, sight)

    def collude(self, honest: Updates, own: Updates, generator: torch.Generator) -> Updates:
        agreed = self.of.collude(honest, own, generator)
        one = agreed[min(agreed)]
        std = self.jitter * rms(one)
        return {liar: add(one, normal(one, std, generator)) if std else one for liar in own}

    def success(self, client: Client) -> dict[str, float]:
        return self.of.success(client)


@dataclass(frozen=True, kw_only=True)
class ReputationAware(LabelFlip):
    """A label flip whose update is rotated to a cosine with m that a reputation accepts, and rescaled to m's length."""

    cosine: float = 0.9  # cosine with m

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, -1, 1, "cosine")

    def collude(self, honest: Updates, own: Updates, generator: torch.Generator) -> Updates:
        middle = mean(list(honest.values()))
        return {liar: turned(update, middle, self.cosine) for liar, update in own.items()}


def turned(update: Tensors, middle: Tensors, cosine: float) -> Tensors:
    """Return a vector as long as `middle`, at this cosine to it, in the plane of both; if parallel, scaled `middle`."""
    length = norm(middle)
    if not length:
        return update
    across = add(update, middle, alpha=-dot(update, middle) / length**2)
    aside = norm(across)
    # If the update is parallel to `middle`, the remainder is rounding error, not a direction.
    if aside <= 1e-6 * norm(update):
        return scale(middle, cosine)
    return add(scale(middle, cosine), across, alpha=math.sqrt(1 - cosine**2) * length / aside)
