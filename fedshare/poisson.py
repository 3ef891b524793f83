"""Steps on Poisson samples: whether an example is in a step depends on no other example and no other step."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedshare.clipping import Clipping, losses
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.noise import Stream
from fedshare.privacy import Privacy


class Poisson:
    """`epochs` passes of ``ceil(n / batch_size)`` steps, each of which takes every example with probability `rate`.

    A step's gradient is the sum over its examples of the gradient of each one's own mean loss, divided by the number of
    examples that is expected, not by that which came: or the divisor would tell who is there. A step without any
    examples is a step all the same. With `privacy`, each example's gradient is cut and noise is added to the sum (Abadi
    et al. 2016, algorithm 1); a `max_grad_norm` of inf cuts nothing, so the gradient is that of the whole batch, to the
    bit.

    Raises UserError where a BatchNorm is in training mode: it needs several examples, and mixes them.
    """

    def __init__(
        self,
        module: nn.Module,
        trained: Mapping[str, nn.Parameter],
        examples: Examples,
        epochs: int,
        batch_size: int | None,
        privacy: Privacy | None,
        who: Stream,
        noise: Stream,
    ) -> None:
        for name, inner in module.named_modules():
            if isinstance(inner, _BatchNorm) and (inner.training or inner.running_mean is None):
                raise UserError(
                    f"client.sampling=poisson: {name} is a BatchNorm, which mixes a step's examples; GroupNorm and "
                    "LayerNorm do not"
                )
        self._module, self._trained, self._examples = module, trained, examples
        self._privacy, self._who, self._noise = privacy, who, noise
        count = len(examples)
        self._expected = min(batch_size or count, count)
        self.rate = self._expected / count if count else 1.0
        self.steps = epochs * math.ceil(count / self._expected) if count else 0
        clips = privacy is not None and privacy.max_grad_norm < math.inf
        self._clipping = Clipping(module, trained, privacy.max_grad_norm, privacy.chunk) if privacy and clips else None

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps):
            rows = (self._who.uniform(len(self._examples)) < self.rate).nonzero().flatten()
            yield self._examples.batch(rows.to(self._examples.y.device))

    def backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Add the step's gradient to the parameters'; the batch's mean loss, which is 0 where nobody may know it."""
        inputs, targets = batch
        if self._clipping:
            self._clipping.add(inputs, targets)
            self._finish()
        elif len(targets):
            loss = losses(self._module(inputs), targets).sum()
            (loss / self._expected).backward()
            return loss.detach() / len(targets)
        return torch.zeros((), device=targets.device)

    def _finish(self) -> None:
        """From the sum to the mean, with the noise."""
        privacy = self._privacy
        assert privacy is not None
        if privacy.noisy:
            sizes = [parameter.numel() for parameter in self._trained.values()]
            noise = self._noise.normal(sum(sizes)) * (privacy.noise_multiplier * privacy.max_grad_norm)
            for parameter, piece in zip(self._trained.values(), noise.split(sizes), strict=True):
                parameter.grad.add_(piece.view_as(parameter).to(parameter))  # type: ignore[union-attr]
        for parameter in self._trained.values():
            parameter.grad.div_(self._expected)  # type: ignore[union-attr]
