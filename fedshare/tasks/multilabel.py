"""Several labels per example, each present or absent."""

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

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Outputs are logits ``[batch, labels]``, targets 0 or 1 ``[batch, labels]``; -100 does not count.

    ``accuracy`` is over single labels: a label is predicted if its logit is above 0. ``focal`` is the focal loss (Lin
    et al. 2017, arXiv 1708.02002), which gives well-classified labels less weight.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("bce", "focal")
    OWN: ClassVar[Mapping[str, str]] = {"accuracy": "higher"}

    loss: str | object = "bce"  # type: ignore[assignment]
    positive_weights: Sequence[float] | None = None  # per label, of its losses where it is present; null: 1
    gamma: float = 2.0  # of the focal loss: the larger, the less a well-classified label counts
    alpha: float | None = 0.25  # of the focal loss: the weight of present labels, 1 - alpha of absent ones; null: none

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise UserError(f"gamma={self.gamma}: must be at least 0")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha}: must be from 0 to 1")
        super().__post_init__()

    def each(self, outputs: Tensor, targets: Tensor) -> Losses:
        valid = targets != IGNORED
        wanted = torch.where(valid, targets, 0).to(outputs.dtype)
        positive = None
        if self.positive_weights is not None:
            positive = torch.tensor(list(self.positive_weights), dtype=outputs.dtype, device=outputs.device)
        sums = F.binary_cross_entropy_with_logits(outputs, wanted, pos_weight=positive, reduction="none")
        if self.loss == "focal":
            right = torch.where(wanted > 0, outputs, -outputs).sigmoid()
            sums = sums * (1 - right) ** self.gamma
            if self.alpha is not None:
                sums = sums * torch.where(wanted > 0, self.alpha, 1 - self.alpha)
        return Losses((sums * valid).flatten(1).sum(1), valid.flatten(1).sum(1).to(outputs.dtype))

    def counts(self, targets: Tensor) -> Tensor:
        return (targets != IGNORED).flatten(1).sum(1)

    def measures(self, outputs: Tensor, targets: Tensor) -> Tensors:
        return {"correct": (((outputs > 0) == (targets > 0)) & (targets != IGNORED)).sum(1)}

    def _measured(self) -> tuple[str, ...]:
        return ("correct",)

    def made(self, sums: Tensors) -> dict[str, float]:
        return {"accuracy": float(sums["correct"]) / float(sums["examples"])}

    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets; a metric's own ``ignore_index: -100`` makes it ignore labels."""
        return outputs.sigmoid(), targets.long()

    def fitted(self, dataset: Dataset) -> Dataset:
        if self.positive_weights is not None and len(self.positive_weights) != dataset.classes:
            many = len(self.positive_weights)
            raise UserError(f"task.positive_weights: {many}, and {dataset.name} has {dataset.classes} labels")
        return kinds.labels(dataset, IGNORED)

    def blank(self, inputs: Inputs, classes: int) -> Tensor:
        return torch.zeros((len(parts(inputs)[0]), classes), dtype=torch.int8)

    def shapes(self, targets: Tensor, classes: int) -> list[list[int]]:
        return [list(targets.shape)]
