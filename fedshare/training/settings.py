"""Client training settings: the fields of the config's ``client``."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.training.batching import LastBatch, sizes, steps_of
from fedshare.training.private.privacy import Privacy
from fedshare.training.rates import Constant, Rate


@dataclass(frozen=True, kw_only=True)
class Training:
    """A client's training settings for one round."""

    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]  # given the parameters; a fresh one each round
    epochs: float = 1  # passes over the client's examples; 0.5 is half of one, in whole steps
    steps: int | None = None  # steps in a round, whatever the number of examples; null: from `epochs`
    batch_size: int | None = 10  # examples per step, with poisson only the expected number; null: all of them
    last_batch: LastBatch = "join"  # join: a single last example joins the batch before; drop short ones; keep
    lr_decay: float = 1.0  # the learning rate is multiplied by this after each round
    clip_norm: float | None = None  # L2 norm to which a step's gradient, of all trained tensors, is clipped; null: none
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: under autocast; weights keep their type
    layout: Literal["contiguous", "channels_last"] = "contiguous"  # of images in memory; channels_last is often faster
    compile: bool = False  # torch.compile of the model in steps: seconds per shape and process, then faster steps
    flat: bool = True  # step on one vector; false for optimizers that depend on a tensor's shape (Muon, Adafactor)
    sampling: Literal["shuffle", "poisson"] = "shuffle"  # passes in a random order; or `private.poisson`
    privacy: Privacy | None = None  # differential privacy for each example; needs poisson
    evaluation_batch_size: int = 500  # examples per forward pass when testing
    schedule: Rate = field(default_factory=Constant)  # of the learning rate, by round; a config group of its own

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluation_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 < self.epochs < math.inf:
            raise UserError(f"epochs must be above 0, not {self.epochs}")
        if self.last_batch not in ("join", "drop", "keep"):
            raise UserError(f"last_batch must be join, drop or keep, not {self.last_batch}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm must be above 0, not {self.clip_norm}")
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision must be float32 or bfloat16, not {self.precision}")
        if self.layout not in ("contiguous", "channels_last"):
            raise UserError(f"layout must be contiguous or channels_last, not {self.layout}")
        if not 0 < self.lr_decay <= 1:
            raise UserError(f"lr_decay must be in (0, 1], not {self.lr_decay}")
        if self.sampling not in ("shuffle", "poisson"):
            raise UserError(f"sampling must be shuffle or poisson, not {self.sampling}")
        if self.privacy and self.sampling != "poisson":
            raise UserError(f"sampling={self.sampling}: privacy needs poisson, for which what is spent is counted")
        if self.compile and self.sampling == "poisson":
            raise UserError("compile=true: not with sampling=poisson, whose batches all have different sizes")
        try:
            made = self.optimizer([torch.zeros((1,) if self.flat else (1, 1), requires_grad=True)])
        except (TypeError, ValueError) as error:
            hint = "; try flat=false" if self.flat else ""
            raise UserError(f"optimizer: {error}{hint if 'param' in str(error).lower() else ''}") from error
        if self.sampling == "poisson" and needs_closure(made):
            raise UserError(f"optimizer: {type(made).__name__} asks for a step's loss again and again; poisson has one")

    @property
    def private(self) -> bool:
        """Whether noise hides a client's examples."""
        return self.privacy is not None and self.privacy.noisy

    def rate(self, round: int) -> float:
        """Return the factor on the optimizer's learning rate; round 0 is the test before round 1."""
        return float(self.lr_decay ** max(round - 1, 0) * self.schedule(max(round, 1)))

    def pieces(self, count: int) -> list[int]:
        """Return the batch sizes of one pass over `count` examples."""
        return sizes(count, self.batch_size, self.last_batch)

    def pass_steps(self, count: int) -> int:
        """Return the number of steps in one pass over `count` examples."""
        if self.sampling == "poisson":
            return math.ceil(count / min(self.batch_size or count, count)) if count else 0
        return len(self.pieces(count))

    def round_steps(self, per_pass: int, epochs: float | None = None) -> int:
        """Return the steps of a round whose passes have `per_pass` steps; `epochs` overrides the config's."""
        if epochs is None and self.steps is not None:
            return self.steps
        return steps_of(self.epochs if epochs is None else epochs, per_pass)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step needs a closure that recomputes the loss, as LBFGS's does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
