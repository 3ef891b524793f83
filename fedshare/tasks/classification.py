"""One class per example, pixel or position: cross-entropy and accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedshare.data.dataset import Dataset, Inputs, parts
from fedshare.errors import UserError
from fedshare.tasks import targets as kinds
from fedshare.tasks.losses import Losses
from fedshare.tasks.task import Task
from fedshare.tensors import Tensors

IGNORED = -100  # internal value of an ignored target


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Outputs are logits ``[batch, ..., classes]``, targets int64 ``[batch, ...]``; -100 does not count."""

    LOSSES: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    OWN: ClassVar[Mapping[str, str]] = {"accuracy": "higher"}

    loss: str | object = "cross_entropy"  # type: ignore[assignment]
    class_weights: Sequence[float] | None = None  # of each class's losses; null: all alike
    label_smoothing: float = 0.0  # how much of each target goes to all classes alike
    ignore_index: int = IGNORED  # a target that does not count; -100 never does

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing={self.label_smoothing}: must be at least 0 and below 1")
        if self.class_weights is not None and not all(weight >= 0 for weight in self.class_weights):
            raise UserError(f"class_weights={list(self.class_weights)}: must be at least 0")
        super().__post_init__()

    def last(self, outputs: Tensor) -> Tensor:
        """Logits with the classes as their last dimension."""
        return outputs

    def known(self, targets: Tensor) -> Tensor:
        """Targets in which -100 alone does not count."""
        return targets if self.ignore_index == IGNORED else targets.masked_fill(targets == self.ignore_index, IGNORED)

    def each(self, outputs: Tensor, targets: Tensor) -> Losses:
        targets = self.known(targets)
        logits, flat = self.last(outputs).flatten(0, -2), targets.flatten()
        weight = None
        if self.class_weights is not None:
            weight = torch.tensor(list(self.class_weights), dtype=logits.dtype, device=logits.device)
        settings = {"weight": weight, "ignore_index": IGNORED, "label_smoothing": self.label_smoothing}
        sums = F.cross_entropy(logits, flat, reduction="none", **settings)  # type: ignore[arg-type]
        weights = (flat != IGNORED).to(logits.dtype)
        if weight is not None:
            weights = weights * weight[flat.clamp(min=0)]
        if targets.ndim == 1:
            return Losses(sums, weights)
        return Losses(*(values.view(targets.shape).flatten(1).sum(1) for values in (sums, weights)))

    def counts(self, targets: Tensor) -> Tensor:
        there = self.known(targets) != IGNORED
        return there.long() if there.ndim == 1 else there.flatten(1).sum(1)

    def measures(self, outputs: Tensor, targets: Tensor) -> Tensors:
        hits = self.last(outputs).argmax(-1) == self.known(targets)  # of each target
        return {"correct": hits[..., None].flatten(1).sum(1)}

    def _measured(self) -> tuple[str, ...]:
        return ("correct",)

    def _heaviest(self) -> float:
        return max(map(float, self.class_weights)) if self.class_weights else 1.0

    def made(self, sums: Tensors) -> dict[str, float]:
        return {"accuracy": float(sums["correct"]) / float(sums["examples"])}

    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities, because torchmetrics would guess from each batch's values whether they are logits."""
        flat = self.known(targets).flatten()
        return self.last(outputs).flatten(0, -2)[flat != IGNORED].softmax(-1), flat[flat != IGNORED]

    def fitted(self, dataset: Dataset) -> Dataset:
        if self.class_weights is not None and len(self.class_weights) != dataset.classes:
            raise UserError(
                f"task.class_weights: {len(self.class_weights)}, and {dataset.name} has {dataset.classes} classes"
            )
        return kinds.classes(dataset, {IGNORED, self.ignore_index})

    def blank(self, inputs: Inputs, classes: int) -> Tensor:
        return torch.zeros(len(parts(inputs)[0]), dtype=torch.int64)

    def shapes(self, targets: Tensor, classes: int) -> list[list[int]]:
        return [[*targets.shape, classes]]


@dataclass(frozen=True, kw_only=True)
class Segmentation(Classification):
    """Outputs are logits ``[batch, classes, ...]``, targets one class a pixel, ``[batch, ...]``."""

    ignore_index: int = 255  # a target that does not count; -100 never does

    def last(self, outputs: Tensor) -> Tensor:
        return outputs.movedim(1, -1)

    def fitted(self, dataset: Dataset) -> Dataset:
        return super().fitted(kinds.placed(dataset, "pixel", range(2, 5)))

    def blank(self, inputs: Inputs, classes: int) -> Tensor:
        image = parts(inputs)[0]
        return torch.zeros((len(image), *image.shape[2:]), dtype=torch.int64)

    def shapes(self, targets: Tensor, classes: int) -> list[list[int]]:
        return [[len(targets), classes, *targets.shape[1:]]]


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Classification):
    """The next token at each position: logits ``[batch, length, classes]``, targets ``[batch, length]``."""

    OWN: ClassVar[Mapping[str, str]] = {"accuracy": "higher", "perplexity": "lower"}

    def fitted(self, dataset: Dataset) -> Dataset:
        return super().fitted(kinds.placed(dataset, "position", range(2, 3)))

    def blank(self, inputs: Inputs, classes: int) -> Tensor:
        return torch.zeros(parts(inputs)[0].shape[:2], dtype=torch.int64)

    def made(self, sums: Tensors) -> dict[str, float]:
        weight = float(sums["weight"])
        return super().made(sums) | {"perplexity": perplexity(float(sums["loss"]) / weight if weight else 0.0)}


def perplexity(loss: float) -> float:
    """Return ``exp(loss)``: the number of equally likely tokens with the same uncertainty."""
    return math.exp(loss) if not loss > 700 else math.inf
