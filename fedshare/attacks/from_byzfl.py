"""ByzFL's attacks (González et al., "ByzFL: Research Framework for Robust Federated Learning", arXiv 2505.24802)."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fedshare import seeds
from fedshare.attacks.attack import Attack
from fedshare.errors import UserError, first_line
from fedshare.machine.extras import importing
from fedshare.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class ByzFL(Attack):
    """All adversaries send the result of one of ByzFL's attacks on the honest updates, each as one float32 vector."""

    name: str  # a class of byzfl.attacks
    options: dict[str, Any] = field(default_factory=dict)  # its arguments

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made()

    def collude(
        self, honest: dict[int, Tensors], own: dict[int, Tensors], generator: torch.Generator
    ) -> dict[int, Tensors]:
        like = next(iter(honest.values()))
        rows = [torch.cat([tensor.reshape(-1).float() for tensor in update.values()]) for update in honest.values()]
        with seeds.scope(int(torch.randint(2**62, (), generator=generator))):  # it uses torch's global generator
            vector = self._made()(torch.stack(rows))
        pieces = vector.split([tensor.numel() for tensor in like.values()])
        lie = {name: p.view(t.shape).to(t.dtype) for (name, t), p in zip(like.items(), pieces, strict=True)}
        return dict.fromkeys(own, lie)

    def _made(self) -> Callable[[torch.Tensor], torch.Tensor]:
        with importing("byzfl", "attack=byzfl"):
            attacks = importlib.import_module("byzfl.attacks.attacks")
        known = {
            name: kind for name, kind in vars(attacks).items() if getattr(kind, "__module__", "") == attacks.__name__
        }
        if self.name not in known:
            raise UserError(f"name={self.name}: must be {', '.join(known)}")
        try:
            made: Callable[[torch.Tensor], torch.Tensor] = known[self.name](**self.options)
        except (TypeError, ValueError) as error:
            raise UserError(f"options={self.options}: {first_line(error)}") from error
        return made
