"""The only training loop: steps on batches, whatever makes their gradients."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fedshare.data.dataset import Inputs
from fedshare.scratch import Scratch
from fedshare.tasks import Losses, Task, models
from fedshare.tensors import Tensors
from fedshare.training import Training, needs_closure

Batch = tuple[Inputs, Tensor]
Backward = Callable[[Batch], Losses]  # adds a step's gradient to the parameters'; the losses it comes of


def autocast(training: Training, device: torch.device) -> AbstractContextManager[object]:
    """In it, the model computes in the precision that the config says."""
    return torch.autocast(device.type, torch.bfloat16) if training.precision == "bfloat16" else nullcontext()


def plain(scratch: Scratch, task: Task, training: Training) -> Backward:
    """The gradient of a batch's mean loss."""

    def backward(batch: Batch) -> Losses:
        inputs, targets = batch
        with autocast(training, scratch.device):
            returned = models.call(scratch.module, inputs)
        losses = task.train_losses(returned, targets)
        losses.mean().backward()
        return Losses(losses.sums.detach(), losses.weights.detach())

    return backward


def fit(
    scratch: Scratch,
    training: Training,
    round: int,
    names: list[str],
    batches: Iterable[Batch],
    backward: Backward,
    toward: Tensors,
    pull: float,
) -> float:
    """A step on each of `batches`, on the trained parameters `names` alone; the mean of all losses, before each step.

    ``pull / 2`` times the squared distance of the parameters from those in `toward` is added to the loss.
    """
    chosen = set(names)
    for name in scratch.trainable:
        scratch.parameters[name].requires_grad_(name in chosen)
    vectors = scratch.slices(names) if training.flat else [scratch.parameters[name] for name in names]
    optimizer = training.optimizer(vectors)
    for group in optimizer.param_groups:
        group["lr"] *= training.rate(round)
    anchors = {name: toward[name].to(scratch.device) for name in names if name in toward}
    total, weight = torch.zeros(2, device=scratch.device)

    def gradient(batch: Batch) -> Losses:
        for vector in vectors:
            vector.grad.zero_()  # type: ignore[union-attr]
        losses = backward(batch)
        for name, anchor in anchors.items():
            scratch.slope(name).add_(scratch.value(name) - anchor, alpha=pull)
        if training.clip_norm is not None:
            clip_grad_norm_(vectors, training.clip_norm)
        return losses

    step = _searching if needs_closure(optimizer) else _stepping
    scratch.train()
    for batch in batches:
        losses = step(optimizer, partial(gradient, batch))
        total += losses.sums.sum()
        weight += losses.weights.sum()
    scratch.module.eval()
    return float(total) / float(weight) if weight else 0.0


def _stepping(optimizer: torch.optim.Optimizer, gradient: Callable[[], Losses]) -> Losses:
    losses = gradient()
    optimizer.step()
    return losses


def _searching(optimizer: torch.optim.Optimizer, gradient: Callable[[], Losses]) -> Losses:
    """A step that asks for loss and gradient as often as it likes; the losses that it began with."""
    asked: list[Losses] = []

    def closure() -> float:
        asked.append(gradient())
        return float(asked[-1].mean())

    optimizer.step(closure)
    return asked[0]
