"""One optimizer for the stacked parameters of many clients."""

import torch
from torch import Tensor, nn

from fedshare.engine.graphs import Result
from fedshare.training.fit import Fit
from fedshare.training.settings import Training


class Stepper:
    """Steps of the first `active` clients, whose number can only fall: the others have finished.

    `views` are the trained parameters, each ``[clients, ...]``, `anchors` and `corrections` the same of a fit by
    position, where it has any. The optimizer must be elementwise.
    """

    def __init__(
        self,
        training: Training,
        fit: Fit,
        views: list[Tensor],
        anchors: dict[int, Tensor],
        corrections: dict[int, Tensor],
    ) -> None:
        self._clip, self._pull = training.clip_norm, fit.pull
        self._anchors, self._corrections = anchors, corrections
        self._views, self._active = views, len(views[0]) if views else 0
        self._params = [nn.Parameter(view) for view in views]
        self._optimizer = training.optimizer(self._params)
        for group in self._optimizer.param_groups:
            group["lr"] *= training.rate(fit.round)
        self.descends = not anchors and not corrections and self._clip is None and _descends(self._optimizer)

    def narrow(self, active: int) -> None:
        """Leave out all clients but the first `active` from now on."""
        if active == self._active:
            return
        self._active, known = active, {id(param): place for place, param in enumerate(self._params)}
        fresh = [nn.Parameter(view[:active]) for view in self._views]
        for param, new in zip(self._params, fresh, strict=True):
            kept = self._optimizer.state.pop(param, {})
            self._optimizer.state[new] = {
                key: value[:active] if isinstance(value, Tensor) and value.shape == param.shape else value
                for key, value in kept.items()
            }
        for group in self._optimizer.param_groups:
            group["params"] = [fresh[known[id(param)]] for param in group["params"]]
        self._params = fresh

    def step(self, gradients: list[Result]) -> None:
        """Take a step along `gradients`, ``[clients, ...]`` with at least the active ones. They are written over.

        Only if it `descends`, some may be given as products.
        """
        if self.descends:
            self._descend(gradients)
            return
        active = self._active
        some = [gradient[:active] for gradient in gradients if isinstance(gradient, Tensor)]
        for place, anchor in self._anchors.items():
            some[place].add_(self._params[place].detach() - anchor[:active], alpha=self._pull)
        for place, correction in self._corrections.items():
            some[place].add_(correction[:active])
        if self._clip is not None:
            squares = torch.stack([gradient.reshape(active, -1).square().sum(1) for gradient in some])
            factors = (self._clip / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
            for gradient in some:
                gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        for param, gradient in zip(self._params, some, strict=True):
            param.grad = gradient
        self._optimizer.step()

    def _descend(self, gradients: list[Result]) -> None:
        """Subtract the gradients times the rate, a product without computing it: a step waits for memory."""
        rate = -self._optimizer.param_groups[0]["lr"]
        for view, gradient in zip(self._views, gradients, strict=True):
            if isinstance(gradient, Tensor):
                view[: self._active].add_(gradient[: self._active], alpha=rate)
            else:
                left, right = (factor[: self._active] for factor in gradient)
                view[: self._active].baddbmm_(left, right, alpha=rate)


def _descends(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step is only the gradient times the rate."""
    plain = {"momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False}
    first, *others = optimizer.param_groups
    return type(optimizer) is torch.optim.SGD and not others and all(first[name] == plain[name] for name in plain)
