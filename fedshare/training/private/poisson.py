"""Steps on Poisson samples: each example is included independently of other examples and steps."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.tasks import Losses, Task, models
from fedshare.training.fit import Batch
from fedshare.training.forward import arranged, autocast
from fedshare.training.private.clipping import Clipping
from fedshare.training.private.noise import Stream
from fedshare.training.scratch import as_real
from fedshare.training.settings import Training


class Poisson:
    """Passes of ``ceil(n / batch_size)`` steps, each of which includes every example with probability `rate`.

    A step's gradient is the sum of its examples' gradients, each of that example's own mean loss, divided by the
    expected number of examples; the actual number would reveal if an example is included. A step without examples
    still counts. With `privacy`, each example's gradient is clipped and noise is added to the sum (Abadi et al. 2016,
    algorithm 1); a `max_grad_norm` of inf clips nothing, so the gradient is that of the whole batch, to the bit.

    Raises UserError if a BatchNorm is in training mode: it needs several examples, and mixes them.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        trained: Mapping[str, nn.Parameter],
        examples: Examples,
        training: Training,
        epochs: float | None,
        who: Stream,
        noise: Stream,
    ) -> None:
        for name, inner in module.named_modules():
            if isinstance(inner, _BatchNorm) and (inner.training or inner.running_mean is None):
                raise UserError(
                    f"client.sampling=poisson: {name} is a BatchNorm, which mixes a step's examples; GroupNorm and "
                    "LayerNorm do not"
                )
        self._module, self._task, self._trained, self._examples = module, task, trained, examples
        self._training, self._who, self._noise = training, who, noise
        privacy = self._privacy = training.privacy
        count = len(examples)
        self._expected = min(training.batch_size or count, count)
        self.rate = self._expected / count if count else 1.0
        self.steps = training.round_steps(training.pass_steps(count), epochs) if count else 0
        clips = privacy is not None and privacy.max_grad_norm < math.inf
        self._clipping = Clipping(module, task, trained, training) if clips else None

    def batches(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            rows = (self._who.uniform(len(self._examples)) < self.rate).nonzero().flatten()
            yield self._examples.batch(rows.to(self._device))

    @property
    def _device(self) -> torch.device:
        return next(iter(self._trained.values())).device if self._trained else torch.device("cpu")

    def backward(self, batch: Batch) -> Losses:
        """Add the step's gradient to the parameters' gradients. Return the losses, which are 0 if they are private."""
        inputs, targets = batch
        nothing = torch.zeros(1, device=targets.device)
        if self._clipping:
            self._clipping.add(inputs, targets)
            self._finish()
        elif len(targets):
            with autocast(self._training, targets.device):
                returned = models.call(self._module, arranged(self._training, inputs))
            losses = self._task.alone(returned, targets)
            (losses.sum() / self._expected).backward()
            return Losses(losses.detach(), torch.ones_like(losses.detach()))
        return Losses(nothing, nothing)

    def _finish(self) -> None:
        """Turn the sum into the mean, after adding the noise."""
        privacy = self._privacy
        assert privacy is not None
        if privacy.noisy:
            sizes = [as_real(parameter.detach()).numel() for parameter in self._trained.values()]
            noise = self._noise.normal(sum(sizes)) * (privacy.noise_multiplier * privacy.max_grad_norm)
            for parameter, piece in zip(self._trained.values(), noise.split(sizes), strict=True):
                slope = as_real(parameter.grad)  # type: ignore[arg-type]
                slope.add_(piece.view_as(slope).to(slope))
        for parameter in self._trained.values():
            parameter.grad.div_(self._expected)  # type: ignore[union-attr]
