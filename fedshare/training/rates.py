"""Learning-rate schedules over rounds: the factor on the optimizer's rates in round 1, 2, ..."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from fedshare.errors import UserError, first_line


@runtime_checkable
class Rate(Protocol):
    """A pure function of the round, so that it is the same after a resume and for a client that skips rounds."""

    def __call__(self, round: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    def __call__(self, round: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """The rate is multiplied by `factor` after each `every` rounds."""

    every: int  # rounds
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1 or not self.factor >= 0:
            raise UserError(f"every={self.every}, factor={self.factor}: must be at least 1, and at least 0")

    def __call__(self, round: int) -> float:
        return float(self.factor ** ((round - 1) // self.every))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Decays from 1 in the first round to `least` in the last of `rounds` rounds along half a cosine, then stays."""

    rounds: int
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.least <= 1:
            raise UserError(f"rounds={self.rounds}, least={self.least}: must be at least 1, and from 0 to 1")

    def __call__(self, round: int) -> float:
        progress = min(1.0, (round - 1) / max(1, self.rounds - 1))
        return self.least + (1 - self.least) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Rises linearly to 1 in `rounds` rounds; the rounds of `then` count from the one after."""

    rounds: int
    then: Rate = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise UserError(f"rounds={self.rounds}: must be at least 0")

    def __call__(self, round: int) -> float:
        return round / (self.rounds + 1) if round <= self.rounds else self.then(round - self.rounds)


class TorchSchedule:
    """Any torch scheduler, stepped once per round.

    `scheduler` receives an optimizer; only its effect on the learning rate is used. A scheduler created anew in each
    round with ``last_epoch`` would stay at its first rate, so all previous rounds are replayed.
    """

    def __init__(self, scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]) -> None:
        self._optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        try:
            self._scheduler = scheduler(self._optimizer)
            self._factors = [self._now()]
            self(2)
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"scheduler: {first_line(error)}; one that goes by the round alone is required") from error

    def __call__(self, round: int) -> float:
        while len(self._factors) < round:
            self._optimizer.step()
            self._scheduler.step()
            self._factors.append(self._now())
        return self._factors[max(round, 1) - 1]

    def _now(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])
