"""How a client trains: the fields that a config's ``client`` has."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.privacy import Privacy


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a client trains in one round."""

    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]  # given the parameters; a fresh one each round
    epochs: int = 1  # passes over the client's examples
    batch_size: int | None = 10  # examples a step, with poisson only the expected number; null is all of them
    lr_decay: float = 1.0  # the learning rate is multiplied by this after each round
    flat: bool = True  # step on one vector; false for optimizers that look at a tensor's shape (Muon, Adafactor)
    sampling: Literal["shuffle", "poisson"] = "shuffle"  # passes in a random order; or `fedshare.poisson`
    privacy: Privacy | None = None  # differential privacy of each example; needs poisson
    evaluation_batch_size: int = 500  # examples a forward pass when testing

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluation_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 < self.lr_decay <= 1:
            raise UserError(f"lr_decay must be in (0, 1], not {self.lr_decay}")
        if self.sampling not in ("shuffle", "poisson"):
            raise UserError(f"sampling must be shuffle or poisson, not {self.sampling}")
        if self.privacy and self.sampling != "poisson":
            raise UserError(f"sampling={self.sampling}: privacy needs poisson, for which what is spent is counted")
        try:
            self.optimizer([torch.zeros((1,) if self.flat else (1, 1), requires_grad=True)])
        except (TypeError, ValueError) as error:
            hint = "; try flat=false" if self.flat else ""
            raise UserError(f"optimizer: {error}{hint if 'param' in str(error).lower() else ''}") from error

    @property
    def private(self) -> bool:
        """Whether noise hides what a client's examples are."""
        return self.privacy is not None and self.privacy.noisy
