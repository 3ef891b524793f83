"""Training as data: a strategy's request, and the loop that carries it out, the reference for all engines."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fedshare.data.dataset import Examples, Inputs
from fedshare.tasks import Losses, Task
from fedshare.training.forward import step_output
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training, needs_closure

Batch = tuple[Inputs, Tensor]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A strategy's request for training."""

    round: int
    names: tuple[str, ...]  # the parameters that are trained, in the model's order
    epochs: float | None = None  # passes over the examples; None: the config's
    toward: Mapping[str, Tensor] = field(default_factory=dict)  # adds a proximal term to the loss:
    pull: float = 0.0  # ``pull / 2`` times the squared distance of the parameters from `toward`
    correction: Mapping[str, Tensor] = field(default_factory=dict)  # added to the gradient of each step


class Steps(Protocol):
    """The source of a fit's steps."""

    def batches(self) -> Iterator[Batch]: ...

    def backward(self, batch: Batch) -> Losses:
        """Add a step's gradient to the parameters' gradients and return the losses."""
        ...


@dataclass(frozen=True)
class Batches:
    """Steps on batches of `examples`; the gradient is that of the batch's mean loss."""

    scratch: Scratch
    task: Task
    training: Training
    examples: Examples
    rows: Iterable[Tensor]  # row indices of each batch

    def batches(self) -> Iterator[Batch]:
        for some in self.rows:
            yield self.examples.batch(some.to(self.scratch.device))

    def backward(self, batch: Batch) -> Losses:
        inputs, targets = batch
        returned = step_output(self.training, self.scratch, inputs)
        losses = self.task.train_losses(returned, targets)
        losses.mean().backward()
        return Losses(losses.sums.detach(), losses.weights.detach())


def train(scratch: Scratch, training: Training, fit: Fit, steps: Steps) -> float:
    """Take one step after another, on the trained parameters only, and return the mean of all losses.

    Each loss is taken before its step.
    """
    chosen, names = set(fit.names), list(fit.names)
    for name in scratch.trainable:
        scratch.parameters[name].requires_grad_(name in chosen)
    vectors = scratch.slices(names) if training.flat else [scratch.parameters[name] for name in names]
    optimizer = training.optimizer(vectors)
    for group in optimizer.param_groups:
        group["lr"] *= training.rate(fit.round)
    anchors = {name: fit.toward[name].to(scratch.device) for name in names if name in fit.toward}
    corrections = {name: fit.correction[name].to(scratch.device) for name in names if name in fit.correction}
    total, weight = torch.zeros(2, device=scratch.device)

    def gradient(batch: Batch) -> Losses:
        for vector in vectors:
            vector.grad.zero_()  # type: ignore[union-attr]
        losses = steps.backward(batch)
        for name, anchor in anchors.items():
            scratch.slope(name).add_(scratch.value(name) - anchor, alpha=fit.pull)
        for name, correction in corrections.items():
            scratch.slope(name).add_(correction)
        if training.clip_norm is not None:
            clip_grad_norm_(vectors, training.clip_norm)
        return losses

    step = _searching if needs_closure(optimizer) else _stepping
    scratch.train()
    for batch in steps.batches():
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
    """Take a step that may evaluate loss and gradient several times, and return the losses before it."""
    asked: list[Losses] = []

    def closure() -> float:
        asked.append(gradient())
        return float(asked[-1].mean())

    optimizer.step(closure)
    return asked[0]


def check_like(shapes: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    """Raise if `tensors` differ in shape from the model's of the same names: PyTorch would broadcast them."""
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise KeyError(f"the model has no tensor {', '.join(unknown)}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(shapes[name])}")
