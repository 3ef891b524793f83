"""Free-riders: they want the model without training."""

import math
from dataclasses import dataclass

import torch

from fedshare.attacks.attack import Attack, Sight
from fedshare.attacks.limits import limit
from fedshare.attacks.vectors import normal, rms, uniform
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.tensors import Tensors, add, zeros_like


@dataclass(frozen=True, kw_only=True)
class Constant(Attack):
    """The same number everywhere."""

    trains = False

    value: float = 0.0  # the number; 0: the downloaded model is returned unchanged

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, -math.inf, math.inf, "value")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return {name: torch.full_like(tensor, self.value) for name, tensor in update.items()}


@dataclass(frozen=True, kw_only=True)
class Random(Attack):
    """Uniform random numbers."""

    trains = False

    radius: float = 1.0  # numbers are from -radius to radius

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "radius")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        drawn = uniform(update, sight.generator("ride"))
        return {name: self.radius * (2 * tensor - 1) for name, tensor in drawn.items()}


@dataclass(frozen=True, kw_only=True)
class DeltaWeights(Attack):
    """The change of the downloaded model since the last download, which is what the others have learnt.

    The first time, the update is zero.
    """

    trains = False

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        last, sight.memory["model"] = sight.memory.get("model"), dict(sight.start)
        if last is None:
            return zeros_like(update)
        changes = {path: path.split("/", 1)[1] for path in update}
        if unknown := sorted(changes.values() - sight.start.keys()):
            raise UserError(f"attack: repeats how the model has changed, and {unknown[0]} is no part of one")
        return {path: (sight.start[name] - last[name]).to(update[path].dtype) for path, name in changes.items()}


@dataclass(frozen=True, kw_only=True)
class DeltaNoise(DeltaWeights):
    """`DeltaWeights` with normal noise that decays as training does, so that no two updates are equal.

    Its deviation is ``noise * size * round ** -decay``, where `size` is the root mean square of the first change seen.
    """

    noise: float = 1.0  # scale of the noise
    decay: float = 1.0  # exponent of its decay; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "noise", "decay")

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        change = super().forge(update, sight)
        size = sight.memory.get("size") or rms(change)
        if size:
            sight.memory["size"] = size
        return add(change, normal(change, self.noise * size * sight.round**-self.decay, sight.generator("ride")))


@dataclass(frozen=True, kw_only=True)
class Stale(Attack):
    """It trains in the first rounds, and then resends its last update.

    A client that was not in those rounds sends zeros.
    """

    learns: int = 1  # number of these rounds

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "learns")

    def at(self, round: int) -> Attack:
        return self if round <= self.learns else Replay(adversaries=self.adversaries)

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        sight.memory["update"] = dict(update)
        return update


@dataclass(frozen=True, kw_only=True)
class Replay(Attack):
    """A `Stale` client after it has stopped training."""

    trains = False

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return sight.memory.get("update") or zeros_like(update)


@dataclass(frozen=True, kw_only=True)
class Partial(Attack):
    """It trains on a few of its examples, always the same ones, and claims them all."""

    share: float = 0.01  # share of its examples, rounded up

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, 1, "share")

    def poison(self, examples: Examples, generator: torch.Generator) -> Examples:
        count = math.ceil(self.share * len(examples))
        return examples.subset(torch.randperm(len(examples), generator=generator)[:count].sort().values)
