"""Centralised training on all data: it makes the weights that federated runs start from."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedshare import seeds
from fedshare.client import Batch, Client, Share, Training
from fedshare.errors import RunHalted, UserError
from fedshare.state import State
from fedshare.tasks import Classification, Task, models
from fedshare.tensors import Tensors
from fedshare.training.scratch import Scratch

Augment = Callable[[Tensor, torch.Generator], Tensor]  # a batch's inputs and a generator -> inputs of the same shape


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train. The learning rate rises to the optimizer's, then falls to zero along half a cosine, per step."""

    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]  # called with the parameters
    epochs: int
    batch_size: int = 128  # examples per step
    warmup_epochs: float = 0.0  # epochs of the rise
    label_smoothing: float = 0.0  # how much of each target goes to all classes alike
    augment: Augment | None = None  # applied to training batches
    task: Task = field(default_factory=Classification)  # defines loss and metrics
    precision: str = "float32"  # or bfloat16, under autocast; weights keep their type
    test_every: int = 1  # every so many epochs, and after the last

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision={self.precision}: must be float32 or bfloat16")
        if self.warmup_epochs > self.epochs:
            raise UserError(f"warmup_epochs={self.warmup_epochs:g}: must be at most epochs, {self.epochs}")
        if self.label_smoothing and not isinstance(self.task, Classification):
            raise UserError(f"label_smoothing={self.label_smoothing}: is for classes; task={type(self.task).__name__}")
        self.training()

    def training(self) -> Training:
        """One epoch as client training. Raises UserError if the optimizer or the batch size is invalid."""
        return Training(optimizer=self.optimizer, batch_size=self.batch_size, flat=False)

    def _smoothed(self) -> Task:
        """The task in training; tests are without label smoothing."""
        if isinstance(self.task, Classification) and self.label_smoothing:
            return replace(self.task, label_smoothing=self.label_smoothing)
        return self.task

    def rate(self, step: int, steps: int) -> float:
        """Return the rate at a step counted from 0, with `steps` per epoch, relative to the optimizer's own."""
        warmup, last = self.warmup_epochs * steps, self.epochs * steps
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        return (1 + math.cos(math.pi * (step - warmup) / (last - warmup))) / 2

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        if self.precision == "float32":
            yield
            return
        # On a CPU, the backward pass of fused attention in bfloat16 takes longer than everything else.
        plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        with plain, torch.autocast(device.type, torch.bfloat16):
            yield

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the batch, and its divisor."""
        inputs, targets = batch
        with self.autocast(targets.device):
            returned = models.call(model, inputs)
        losses = self._smoothed().train_losses(returned, targets)
        return losses.sums.sum(), losses.weights.sum()


@dataclass(frozen=True)
class Epoch:
    """The result of an epoch. `memory` is where to resume; it holds the model's own tensors, so save it at once."""

    number: int
    record: dict[str, Any]
    memory: State


def pretrain(scratch: Scratch, share: Share, plan: Plan, seed: int, memory: State | None = None) -> Iterator[Epoch]:
    """Train the model on `share`, from its initial weights or from an earlier epoch's `memory`, with the same bits.

    A record holds ``epoch``, ``train_loss`` (over the epoch, before each step), ``lr`` (of the last step), ``seconds``,
    ``examples_per_second`` (in training) and, if the epoch was tested, ``accuracy`` and ``loss``. Raise RunHalted when
    a loss or a parameter is no longer finite.
    """
    client = Client(0, seed, scratch, plan.training(), share, {}, task=plan.task)
    client.load({})
    optimizer = plan.optimizer([entry for entry in scratch.module.parameters() if entry.requires_grad])
    rates = [group["lr"] for group in optimizer.param_groups]
    if memory:
        _restore(scratch.module, optimizer, memory)
    for epoch in range(memory["epoch"] + 1 if memory else 1, plan.epochs + 1):
        began = time.perf_counter()
        with seeds.scope(seed, "pretrain", epoch):
            loss = _train(client, plan, optimizer, rates, epoch)
        trained = time.perf_counter()
        record = {"epoch": epoch, "train_loss": loss, "lr": optimizer.param_groups[0]["lr"]}
        if (epoch % plan.test_every == 0 or epoch == plan.epochs) and len(client.test_examples):
            record |= {key: value for key, value in client.scores().items() if key != "examples"}
        _check_finite(epoch, record.get("loss", 0.0), *scratch.parameters.values())
        record["seconds"] = time.perf_counter() - began
        record["examples_per_second"] = len(client.train_examples) / (trained - began)
        yield Epoch(epoch, record, _memory(scratch.module, optimizer, epoch))


def _train(client: Client, plan: Plan, optimizer: torch.optim.Optimizer, rates: list[float], epoch: int) -> float:
    """Make one pass over the training examples and return the mean loss."""
    steps = len(client.training.pieces(len(client.train_examples)))
    random = seeds.generator(client.seed, "augment", epoch)
    total, count = torch.zeros(2, device=client.device)
    client.model.train()
    for step, (inputs, targets) in enumerate(client.batches(epoch), (epoch - 1) * steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * plan.rate(step, steps)
        if plan.augment and isinstance(inputs, Tensor):
            inputs = plan.augment(inputs, random)
        loss, weight = plan.loss(client.model, (inputs, targets))
        optimizer.zero_grad()
        (loss / torch.where(weight > 0, weight, 1)).backward()
        optimizer.step()
        total += loss.detach()
        count += weight
        if step % 50 == 0:  # not at each step, because it waits for the device
            _check_finite(epoch, total)
    _check_finite(epoch, total)
    client.model.eval()
    return float(total / count) if count else 0.0


def _check_finite(epoch: int, *values: Tensor | float) -> None:
    if not all(bool(torch.as_tensor(value).isfinite().all()) for value in values):
        raise RunHalted(f"epoch {epoch}: the loss is not finite any more: try a lower optimizer.lr or a longer warmup")


def _tensors(model: nn.Module) -> Tensors:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _memory(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> State:
    kept = optimizer.state_dict()
    groups = [{k: list(v) if isinstance(v, tuple) else v for k, v in group.items()} for group in kept["param_groups"]]
    return {"epoch": epoch, "model": _tensors(model), "optimizer": kept["state"], "groups": groups}


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, memory: State) -> None:
    own = _tensors(model)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in memory["model"].items()}:
        raise UserError("the checkpoint is of another model than the config's")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(memory["model"][name])
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, memory["groups"], strict=True):
        group |= {k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()}
    optimizer.load_state_dict({"state": memory["optimizer"], "param_groups": groups})
