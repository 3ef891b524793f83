"""Regression: numbers instead of classes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedshare.data.dataset import Dataset, Inputs, parts
from fedshare.errors import UserError
from fedshare.tasks import targets as kinds
from fedshare.tasks.losses import Losses
from fedshare.tasks.task import Task

_LOSSES: dict[str, Any] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Outputs and targets are numbers ``[batch]`` or ``[batch, outputs]``; `outputs` is the data's ``classes``."""

    LOSSES: ClassVar[tuple[str, ...]] = tuple(_LOSSES)
    OWN: ClassVar[Mapping[str, str]] = {}

    loss: str | object = "mse"  # type: ignore[assignment]
    delta: float = 1.0  # of the Huber loss: the error above which it grows linearly

    def __post_init__(self) -> None:
        if not 0 < self.delta < math.inf:
            raise UserError(f"delta={self.delta}: must be above 0")
        super().__post_init__()

    def each(self, outputs: Tensor, targets: Tensor) -> Losses:
        outputs = self.aligned(outputs, targets)
        settings = {"delta": self.delta} if self.loss == "huber" else {}
        sums = _LOSSES[str(self.loss)](outputs, targets.to(outputs.dtype), reduction="none", **settings)
        total = sums if sums.ndim == 1 else sums.flatten(1).sum(1)
        return Losses(total, self.counts(targets).to(total))

    def aligned(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.reshape(targets.shape)  # of [batch, 1] and [batch], broadcasting would make [batch, batch]

    def counts(self, targets: Tensor) -> Tensor:
        return torch.full((len(targets),), targets[:1].numel() if len(targets) else 1, device=targets.device)

    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = targets.squeeze(1) if targets.ndim == 2 and targets.shape[1] == 1 else targets
        return outputs.reshape(wanted.shape), wanted.to(outputs.dtype)

    def fitted(self, dataset: Dataset) -> Dataset:
        return kinds.numbers(dataset)

    def blank(self, inputs: Inputs, classes: int) -> Tensor:
        count = len(parts(inputs)[0])
        return torch.zeros(count if classes == 1 else (count, classes))

    def shapes(self, targets: Tensor, classes: int) -> list[list[int]]:
        plain = list(targets.shape)
        return [[*plain, 1], plain] if targets.ndim == 1 else [plain]
