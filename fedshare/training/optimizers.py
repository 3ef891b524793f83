"""An optimizer that combines two of PyTorch's."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fedshare.errors import UserError


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for other tensors, as Muon is meant to be used (Jordan et al. 2024; Liu et al. 2025).

    Both use the rate `lr`: Muon's steps are scaled to the size of AdamW's (arXiv 2502.16982, section 2.2). From random
    weights, a small transformer learns about as much in one epoch as in two with AdamW alone.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 3e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.05,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"MuonAdamW: PyTorch has Muon from 2.9 on, and this is {torch.__version__}")
        everything = list(params)
        if everything and not any(p.ndim > 1 for p in everything):
            raise ValueError("MuonAdamW: none of the parameters is a matrix; flat=true makes vectors of them")
        matrices, rest = ([p for p in everything if (p.ndim == 2) is wanted] for wanted in (True, False))
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            scaled = torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
            self.parts.append(scaled)
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=lr, betas=(betas[0], betas[1]), weight_decay=0.0))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups = [group]  # the same object, so that a schedule changes its parts too

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        for part in self.parts:
            self.state.update(part.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state.update({p: self.state[p] for p in group["params"] if p in self.state})
