"""A participant: its model, its data, what it remembers, and the only training loop."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedshare import seeds
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.scratch import Scratch
from fedshare.state import State
from fedshare.tensors import Tensors

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a client trains in one round."""

    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]  # given the parameters; a fresh one each round
    epochs: int = 1  # passes over the client's examples
    batch_size: int | None = 10  # examples a step; null is all of them
    lr_decay: float = 1.0  # the learning rate is multiplied by this after each round
    flat: bool = True  # step on one vector; false for optimizers that look at a tensor's shape (Muon, Adafactor)
    evaluation_batch_size: int = 500  # examples a forward pass when testing

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluation_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 < self.lr_decay <= 1:
            raise UserError(f"lr_decay must be in (0, 1], not {self.lr_decay}")
        try:
            self.optimizer([torch.zeros((1,) if self.flat else (1, 1), requires_grad=True)])
        except (TypeError, ValueError) as error:
            hint = "; try flat=false" if self.flat else ""
            raise UserError(f"optimizer: {error}{hint if 'param' in str(error).lower() else ''}") from error


class Share(Protocol):
    """A client's part of the data."""

    @property
    def train(self) -> Examples: ...
    @property
    def test(self) -> Examples: ...


class Client:
    """What a strategy sees of a participant. `state` is all it remembers from round to round."""

    def __init__(self, id: int, seed: int, scratch: Scratch, training: Training, share: Share, state: State) -> None:
        self.id = id
        self.seed = seed
        self.state = state
        self.training = training
        self._scratch = scratch
        self._share = share

    @cached_property
    def train_examples(self) -> Examples:
        return self._share.train.to(self._scratch.device)

    @cached_property
    def test_examples(self) -> Examples:
        return self._share.test.to(self._scratch.device)

    @property
    def model(self) -> nn.Module:
        return self._scratch.module

    @property
    def initial(self) -> Tensors:
        """The parameters everyone starts from. Read only."""
        return self._scratch.initial

    def params(self, names: list[str] | None = None) -> Tensors:
        """A copy of the model's parameters and floating-point buffers, or of those called `names`."""
        return self._scratch.params(names)

    def load(self, params: Tensors) -> None:
        """Make the model the initial one overlaid with `params`, so that nothing of another client remains in it.

        It is then in evaluation mode, as it is after `fit`.
        """
        self._scratch.load(params)

    def batches(self, round: int) -> Iterator[Batch]:
        """The batches of this round: `epochs` passes, each in an order of its own."""
        order = seeds.generator(self.seed, "batches", round, self.id)
        count = len(self.train_examples)
        for _ in range(self.training.epochs):
            rows = torch.randperm(count, generator=order).to(self._scratch.device)
            for some in rows.split(self.training.batch_size or count):
                yield self.train_examples.batch(some)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy, averaged over the batch's targets; logits are ``[..., classes]``."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())

    def fit(self, round: int, names: Iterable[str] | None = None) -> dict[str, float]:
        """Train the model on the client's examples, only the parameters `names` where given.

        Returns ``examples`` (how many the client has) and ``train_loss`` (averaged over the steps, before each).
        """
        scratch = self._scratch
        names = scratch.trainable if names is None else list(names)
        chosen = set(names)
        for name in scratch.trainable:
            scratch.parameters[name].requires_grad_(name in chosen)
        vectors = scratch.slices(names) if self.training.flat else [scratch.parameters[name] for name in names]
        optimizer = self.training.optimizer(vectors)
        for group in optimizer.param_groups:
            group["lr"] *= self.training.lr_decay ** (round - 1)
        total, count = torch.zeros((), device=scratch.device), 0
        self.model.train()
        for batch in self.batches(round):
            for vector in vectors:
                vector.grad.zero_()  # type: ignore[union-attr]
            loss = self.loss(batch)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch[1])
            count += len(batch[1])
        self.model.eval()
        return {"examples": float(len(self.train_examples)), "train_loss": float(total) / max(count, 1)}

    def evaluate(self) -> dict[str, float]:
        """``accuracy`` and ``loss`` over the client's test targets and, as ``examples``, how many those are."""
        loss, correct, count = 0.0, 0, 0
        self.model.eval()
        with torch.no_grad():
            for rows in torch.arange(len(self.test_examples)).split(self.training.evaluation_batch_size):
                inputs, targets = self.test_examples.batch(rows)
                logits, targets = self.model(inputs).flatten(0, -2), targets.flatten()
                loss += float(F.cross_entropy(logits, targets, reduction="sum"))
                correct += int((logits.argmax(-1) == targets).sum())
                count += int((targets != -100).sum())
        if count == 0:
            return {"examples": 0.0}
        return {"accuracy": correct / count, "loss": loss / count, "examples": float(count)}
