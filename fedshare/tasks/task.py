"""What every task is: the loss of each example, the sums that a test adds up, and the metrics that these amount to."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedshare.data.dataset import Dataset, Inputs
from fedshare.errors import UserError
from fedshare.tasks import additive, models
from fedshare.tasks.losses import Loss, Losses, known_empty
from fedshare.tensors import Tensors

ROUNDING = 1e-6  # of a sum of float64, far more than it can be off
CHUNK = 1 << 24  # numbers of an output that a test takes apart at once, in float64


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Fields are the YAML's keys. A subclass says what its losses are, and may refuse or convert a data set's targets.

    A test adds up float64 and int64 tensors by name, `sums`: those of all clients together give the same metrics as a
    test on the examples of all of them. ``loss``, ``weight`` and ``examples`` (targets that count) are always there.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ()  # the losses that can be named
    OWN: ClassVar[Mapping[str, str]] = {}  # metrics that need no torchmetrics: higher or lower is better

    loss: str | Loss = ""  # one of the task's losses by its name; or your own: outputs, targets -> the mean
    metrics: Mapping[str, Any] = field(default_factory=dict)  # by name, torchmetrics whose states are sums
    headline: str | None = None  # the metric by which clients are compared; null: the task's first
    better: Literal["higher", "lower"] | None = None  # where the headline does not say it itself
    output: str | int | None = None  # which of a model's several outputs is the answer; null: logits, out, or the first
    auxiliary: float = 0.0  # how much the loss of each of the other outputs counts in training

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in self.LOSSES:
            raise UserError(f"loss={self.loss}: must be {' or '.join(self.LOSSES)}, or a function of your own")
        if not 0 <= self.auxiliary < math.inf:
            raise UserError(f"auxiliary={self.auxiliary}: must be at least 0")
        for name, metric in self.metrics.items():
            if name in (*self.OWN, "loss", "examples", "weight") or not name.isidentifier():
                raise UserError(f"metrics.{name}: is taken, or no plain name")
            additive.check(name, metric)
        if self.headline is not None and self.headline not in self.directions():
            raise UserError(f"headline={self.headline}: must be one of {', '.join(self.directions())}")
        if self.directions()[self.compared] is None:
            raise UserError(f"better: {self.compared} does not say whether higher or lower is better")

    # What a subclass says.

    @abstractmethod
    def each(self, outputs: Tensor, targets: Tensor) -> Losses:
        """The task's own loss, the one called `loss`, of each example."""

    @abstractmethod
    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets as torchmetrics take them, without targets that do not count."""

    def counts(self, targets: Tensor) -> Tensor:
        """How many targets of each example count, ``[batch]``."""
        return torch.ones(len(targets), device=targets.device)

    def measures(self, outputs: Tensor, targets: Tensor) -> Tensors:
        """What the metrics of `OWN` are made of: sums over the batch, by name."""
        return {}

    def made(self, sums: Tensors) -> dict[str, float]:
        """The metrics of `OWN` from their sums; ``examples`` is above 0."""
        return {}

    def aligned(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs as a function of the user's gets them."""
        return outputs

    def fitted(self, dataset: Dataset) -> Dataset:
        """The data set with its targets as the task takes them. Raises UserError where they cannot be."""
        return dataset

    @abstractmethod
    def blank(self, inputs: Inputs, classes: int) -> Tensor:
        """Targets for these inputs, all 0: what stands in for data that are elsewhere."""

    @abstractmethod
    def shapes(self, targets: Tensor, classes: int) -> list[list[int]]:
        """The shapes that outputs for these targets may have, the usual one first."""

    # What all have.

    def outputs(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """The model's answer to a batch's inputs."""
        answer, _ = models.select(models.call(module, inputs), self.output)
        return answer

    def losses(self, outputs: Tensor, targets: Tensor) -> Losses:
        """The loss of each example: the task's, or that of a function of the user's.

        The user's mean over a batch stands for all of its examples, each by how many of its targets count.
        """
        if isinstance(self.loss, str):
            return self.each(outputs, targets)
        counts = self.counts(targets).to(outputs.dtype)
        if known_empty(counts):  # a mean over nothing is NaN, and so would be its gradient
            return Losses(outputs.sum() * counts, counts)
        found = self.loss(self.aligned(outputs, targets), targets)
        given = found if isinstance(found, tuple) else (found,)
        shapes = [list(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in given]
        each = list(counts.shape)
        if shapes == [each, each]:
            return Losses(*given)
        if shapes not in ([[]], [each]):
            raise UserError(
                f"task.loss: gives {' and '.join(map(str, shapes))}; must be a mean, a loss for each example, {each}, "
                "or for each example its sum and what to divide it by"
            )
        return Losses(found * counts, counts)

    def train_losses(self, returned: Any, targets: Tensor) -> Losses:
        """As `losses`, from all that the model returns: other outputs count by `auxiliary`."""
        answer, others = models.select(returned, self.output)
        sums, weights = self.losses(answer, targets)
        for other in others if self.auxiliary else []:
            sums = sums + self.auxiliary * self.losses(other, targets).sums
        return Losses(sums, weights)

    def alone(self, returned: Any, targets: Tensor) -> Tensor:
        """Each example's own mean loss, ``[batch]``, which depends on no other example; 0 without a target that counts.

        That is what private training bounds, from all that the model returns. Class weights act on it in full.
        """

        def sums(outputs: Tensor) -> Tensor:
            if isinstance(self.loss, str):
                return self.each(outputs, targets).sums
            one = torch.func.vmap(lambda o, y: self.losses(o[None], y[None]).sums.sum(), randomness="different")
            found: Tensor = one(outputs, targets)
            return found

        answer, others = models.select(returned, self.output)
        total = sums(answer)
        for other in others if self.auxiliary else []:
            total = total + self.auxiliary * sums(other)
        return total / self.counts(targets).clamp(min=1)

    def zeros(self) -> Tensors:
        """The sums of a test on nothing: names, shapes and types of all that a test adds up."""
        whole = dict.fromkeys(("loss", "weight"), torch.zeros((), dtype=torch.float64))
        whole |= dict.fromkeys(("examples", *self._measured()), torch.zeros((), dtype=torch.int64))
        return whole | additive.states(self.metrics)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensors:
        """What a test on this batch adds to, on the CPU."""
        if not outputs.is_floating_point():
            outputs = outputs.float()
        outputs, targets = outputs.detach(), targets.detach()
        if outputs.device.type == "mps":  # has no float64
            outputs, targets = outputs.cpu(), targets.cpu()
        total = self.zeros()
        rows = max(1, CHUNK // max(1, outputs[:1].numel()))
        for some, wanted in zip(outputs.split(rows), targets.split(rows), strict=True):
            losses = self._tested(some, wanted)
            some = some.double()
            found = {"loss": losses.sums.sum(), "weight": losses.weights.sum()}
            found |= {"examples": self.counts(wanted).sum(), **self.measures(some, wanted)}
            if self.metrics:
                found |= additive.updated(self.metrics, *self.answers(some, wanted))
            total = add(total, found)
        return total

    def _tested(self, outputs: Tensor, targets: Tensor) -> Losses:
        """In float64, unless a function of the user's holds numbers in a type of its own."""
        try:
            return self.losses(outputs.double(), targets)
        except RuntimeError:
            if isinstance(self.loss, str):
                raise
            return self.losses(outputs, targets)

    def flaw(self, sums: Tensors, most: int) -> str | None:
        """Why no test on at most `most` targets gives `sums`, whose names, types and counts are right; None where one
        may. A loss that is not finite is no flaw: a model may have diverged.
        """
        loss, weight, examples = (float(sums[name]) for name in ("loss", "weight", "examples"))
        if not 0 <= weight < math.inf:
            return f"weight is {weight:g}, not a number from 0"
        if isinstance(self.loss, str):  # of a function of the user's nothing is known
            if loss < 0:
                return f"loss is {loss:g}, which is below 0"
            if weight > (heaviest := examples * self._heaviest()) * (1 + ROUNDING):
                return f"weight is {weight:g}, not 0 to {heaviest:g}"
        return additive.flaw(self.metrics, sums, most) if self.metrics else None

    def _heaviest(self) -> float:
        """The largest weight that a target can have in the task's own loss."""
        return 1.0

    def scores(self, sums: Tensors) -> dict[str, float]:
        """The metrics by name, the headline first, ``loss`` and ``examples``; of nothing ``examples`` alone."""
        examples = float(sums["examples"])
        if not examples:
            return {"examples": 0.0}
        weight = float(sums["weight"])
        found = self.made(sums) | additive.scores(self.metrics, sums)
        found["loss"] = float(sums["loss"]) / weight if weight else 0.0
        return {self.compared: found.pop(self.compared)} | found | {"examples": examples}

    @property
    def compared(self) -> str:
        """The name of the headline metric."""
        return self.headline or next(iter(self.directions()))

    @property
    def higher(self) -> bool:
        """Whether more of the headline metric is better."""
        return self.directions()[self.compared] == "higher"

    def directions(self) -> dict[str, str | None]:
        """The metrics by name, and whether ``higher`` or ``lower`` is better; None where nobody says."""
        found = {**self.OWN, **{name: additive.better(m) for name, m in self.metrics.items()}, "loss": "lower"}
        return found | ({self.headline: self.better} if self.headline and self.better else {})

    def _measured(self) -> tuple[str, ...]:
        """The names that `measures` gives."""
        return ()


def add(a: Tensors, b: Tensors) -> Tensors:
    """`a` + `b`, in `a`'s types, on its device."""
    return {name: value + b[name].to(value) for name, value in a.items()}
