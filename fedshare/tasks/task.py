"""The base of all tasks: each example's loss, the sums that a test accumulates, and the metrics computed from them."""

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

ROUNDING = 1e-6  # of a float64 sum, far above its rounding error
CHUNK = 1 << 24  # output elements that a test processes at once, in float64


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Fields are the YAML keys. A subclass defines its losses, and may reject or convert a data set's targets.

    A test accumulates named float64 and int64 tensors, `sums`: those of all clients added together give the same
    metrics as one test on all their examples. ``loss``, ``weight`` and ``examples`` (targets that count) are always
    present.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ()  # names of the losses
    OWN: ClassVar[Mapping[str, str]] = {}  # metrics without torchmetrics: whether higher or lower is better

    loss: str | Loss = ""  # the name of one of the task's losses; or your own function: outputs, targets -> the mean
    metrics: Mapping[str, Any] = field(default_factory=dict)  # by name, torchmetrics whose states are sums
    headline: str | None = None  # the metric that compares clients; null: the task's first
    better: Literal["higher", "lower"] | None = None  # if the headline metric does not define it
    output: str | int | None = None  # the main output among several; null: logits, out, or the first
    auxiliary: float = 0.0  # weight of each other output's loss in training

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

    # Defined by a subclass.

    @abstractmethod
    def each(self, outputs: Tensor, targets: Tensor) -> Losses:
        """Return each example's own loss, the one named by `loss`."""

    @abstractmethod
    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets as torchmetrics expect them, without targets that do not count."""

    def counts(self, targets: Tensor) -> Tensor:
        """Return the number of targets that count in each example, ``[batch]``."""
        return torch.ones(len(targets), device=targets.device)

    def measures(self, outputs: Tensor, targets: Tensor) -> Tensors:
        """Return what each example adds to the sums, by name, from which `made` computes the metrics of `OWN`."""
        return {}

    def made(self, sums: Tensors) -> dict[str, float]:
        """Return the metrics of `OWN` from their sums; ``examples`` is above 0."""
        return {}

    def aligned(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return outputs in the layout that a user's loss function receives."""
        return outputs

    def fitted(self, dataset: Dataset) -> Dataset:
        """Return the data set with its targets as the task needs them. Raises UserError if that is impossible."""
        return dataset

    @abstractmethod
    def blank(self, inputs: Inputs, classes: int) -> Tensor:
        """Return targets of 0 for these inputs, as placeholders for data that are elsewhere."""

    @abstractmethod
    def shapes(self, targets: Tensor, classes: int) -> list[list[int]]:
        """Return the shapes that outputs for these targets may have, the usual one first."""

    # Common to all tasks.

    def outputs(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """Return the model's main output for a batch's inputs."""
        answer, _ = models.select(models.call(module, inputs), self.output)
        return answer

    def losses(self, outputs: Tensor, targets: Tensor) -> Losses:
        """Return the loss of each example, from the task's own loss or the user's function.

        If the user's function returns a mean over the batch, each example gets that mean, weighted by its targets that
        count.
        """
        if isinstance(self.loss, str):
            return self.each(outputs, targets)
        counts = self.counts(targets).to(outputs.dtype)
        if known_empty(counts):  # the mean over nothing, and its gradient, would be NaN
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
        """Return `losses` from all that the model returns: other outputs are weighted by `auxiliary`."""
        answer, others = models.select(returned, self.output)
        sums, weights = self.losses(answer, targets)
        for other in others if self.auxiliary else []:
            sums = sums + self.auxiliary * self.losses(other, targets).sums
        return Losses(sums, weights)

    def alone(self, returned: Any, targets: Tensor) -> Tensor:
        """Return each example's own mean loss, ``[batch]``, independent of other examples; 0 if no target counts.

        Private training bounds this loss, which includes all outputs. Class weights apply in full, not normalised.
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
        """Return the sums of an empty test: names, shapes and types of all that a test accumulates."""
        whole = dict.fromkeys(("loss", "weight"), torch.zeros((), dtype=torch.float64))
        whole |= dict.fromkeys(("examples", *self._measured()), torch.zeros((), dtype=torch.int64))
        return whole | additive.states(self.metrics)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensors:
        """Return what a test on this batch adds to the sums, on the CPU."""
        if not outputs.is_floating_point():
            outputs = outputs.float()
        outputs, targets = outputs.detach(), targets.detach()
        if outputs.device.type == "mps":  # MPS lacks float64
            outputs, targets = outputs.cpu(), targets.cpu()
        total = self.zeros()
        rows = max(1, CHUNK // max(1, outputs[:1].numel()))
        for some, wanted in zip(outputs.split(rows), targets.split(rows), strict=True):
            found = {name: value.sum() for name, value in self.rows(some, wanted).items()}
            if self.metrics:
                found |= additive.updated(self.metrics, *self.answers(some.double(), wanted))
            total = add(total, found)
        return total

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensors:
        """Return what each example adds to the sums of a test, by name, ``[batch]``; without those of `metrics`."""
        losses = self._tested(outputs, targets)
        found = {"loss": losses.sums, "weight": losses.weights, "examples": self.counts(targets)}
        return found | self.measures(outputs.double(), targets)

    def _tested(self, outputs: Tensor, targets: Tensor) -> Losses:
        """Return the losses in float64, unless the user's function holds tensors of another type."""
        try:
            return self.losses(outputs.double(), targets)
        except RuntimeError:
            if isinstance(self.loss, str):
                raise
            return self.losses(outputs, targets)

    def flaw(self, sums: Tensors, most: int) -> str | None:
        """Return why no test on at most `most` targets gives `sums`, whose names, types and counts are right; None if
        one may. A loss that is not finite is allowed, because a model may have diverged.
        """
        loss, weight, examples = (float(sums[name]) for name in ("loss", "weight", "examples"))
        if not 0 <= weight < math.inf:
            return f"weight is {weight:g}, not a number from 0"
        if isinstance(self.loss, str):  # nothing is known of a user's function
            if loss < 0:
                return f"loss is {loss:g}, which is below 0"
            if weight > (heaviest := examples * self._heaviest()) * (1 + ROUNDING):
                return f"weight is {weight:g}, not 0 to {heaviest:g}"
        return additive.flaw(self.metrics, sums, most) if self.metrics else None

    def _heaviest(self) -> float:
        """Return the largest weight that a target can have in the task's own loss."""
        return 1.0

    def scores(self, sums: Tensors) -> dict[str, float]:
        """Return the metrics by name, the headline first, ``loss`` and ``examples``; ``examples`` alone if it is 0."""
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
        """Whether a higher headline metric is better."""
        return self.directions()[self.compared] == "higher"

    def directions(self) -> dict[str, str | None]:
        """Return for each metric whether ``higher`` or ``lower`` is better; None if unknown."""
        found = {**self.OWN, **{name: additive.better(m) for name, m in self.metrics.items()}, "loss": "lower"}
        return found | ({self.headline: self.better} if self.headline and self.better else {})

    def _measured(self) -> tuple[str, ...]:
        """Return the names that `measures` gives."""
        return ()


def add(a: Tensors, b: Tensors) -> Tensors:
    """Return `a` + `b`, in `a`'s types, on its device."""
    return {name: value + b[name].to(value) for name, value in a.items()}
