"""A participant: its model, its data, what it remembers, and the only training loop."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedshare import seeds
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
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
            self.optimizer([torch.zeros(1, 1, requires_grad=True)])
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer: {error}") from error


class Scratch:
    """One model in memory, lent to each client in turn.

    Its parameters, and after them its floating-point buffers, are views of one flat vector, and so are the gradients:
    loading, sending and stepping a whole model are a few operations however many tensors it has.
    """

    def __init__(self, module: nn.Module, training: Training, device: str | torch.device = "cpu") -> None:
        self.module = module.to(device)
        self.training = training
        self.device = torch.device(device)
        parameters = dict(module.named_parameters())
        persistent = module.state_dict().keys()
        buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
        # Running statistics travel and are averaged with the parameters; counters stay at their first value.
        floats = {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
        self._counters = {name: (buffer, buffer.clone()) for name, buffer in buffers.items() if name not in floats}
        entries = parameters | floats
        if len(kinds := {entry.dtype for entry in entries.values()}) != 1:
            raise UserError(f"model: its parameters must have one type, not {sorted(map(str, kinds))}")
        self.flat = torch.cat([entry.detach().reshape(-1) for entry in entries.values()])
        self.gradient = torch.zeros_like(self.flat)
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self.views = self._split(self.flat)
        gradients = self._split(self.gradient)
        for name, parameter in parameters.items():
            parameter.data = self.views[name]
            parameter.grad = gradients[name]
        for name in floats:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = self.views[name]
        self.parameters = parameters
        self.trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
        self.initial = self._split(self.flat.clone())

    def _split(self, flat: Tensor) -> Tensors:
        pieces = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def params(self) -> Tensors:
        """A copy, on the CPU."""
        return self._split(self.flat.to("cpu", copy=True))

    def load(self, params: Tensors) -> None:
        if unknown := params.keys() - self.views.keys():
            raise KeyError(f"the model has no {', '.join(sorted(unknown))}")
        with torch.no_grad():
            for name, view in self.views.items():
                value = params.get(name, self.initial[name])
                if value.shape != view.shape:  # copy_ would broadcast
                    raise ValueError(f"{name} has shape {list(value.shape)}, not {list(view.shape)}")
                view.copy_(value)
            for counter, first in self._counters.values():
                counter.copy_(first)

    def slices(self, names: list[str]) -> list[Tensor]:
        """The parameters `names` as few flat vectors as they allow, each with its gradient."""
        chosen, spans, position = set(names), list[list[int]](), 0
        for name, shape in self.shapes.items():
            end = position + shape.numel()
            if name in chosen:
                if spans and spans[-1][1] == position:
                    spans[-1][1] = end
                else:
                    spans.append([position, end])
            position = end
        vectors: list[Tensor] = []
        for start, end in spans:
            vector = nn.Parameter(self.flat[start:end])
            vector.grad = self.gradient[start:end]
            vectors.append(vector)
        return vectors


class Client:
    """What a strategy sees of a participant. `state` is all it remembers from round to round."""

    def __init__(self, id: int, seed: int, scratch: Scratch, train: Examples, test: Examples, state: State) -> None:
        self.id = id
        self.seed = seed
        self.train_examples = train.to(scratch.device)
        self.test_examples = test.to(scratch.device)
        self.state = state
        self._scratch = scratch

    @property
    def model(self) -> nn.Module:
        return self._scratch.module

    @property
    def initial(self) -> Tensors:
        """The parameters everyone starts from. Read only."""
        return self._scratch.initial

    def params(self) -> Tensors:
        """A copy of the model's parameters and floating-point buffers."""
        return self._scratch.params()

    def load(self, params: Tensors) -> None:
        """Make the model the initial one overlaid with `params`, so that nothing of another client remains in it."""
        self._scratch.load(params)

    def batches(self, round: int) -> Iterator[Batch]:
        """The batches of this round: `epochs` passes, each in an order of its own."""
        order = seeds.generator(self.seed, "batches", round, self.id)
        count, training = len(self.train_examples), self._scratch.training
        for _ in range(training.epochs):
            rows = torch.randperm(count, generator=order).to(self._scratch.device)
            for some in rows.split(training.batch_size or count):
                yield self.train_examples.batch(some)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy, averaged over the batch's targets; logits are ``[..., classes]``."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())

    def fit(self, round: int, names: Iterable[str] | None = None) -> dict[str, float]:
        """Train the model on the client's examples, only the parameters `names` where given.

        Returns ``examples`` (how many the client has) and ``train_loss`` (averaged over the steps, before each).
        """
        scratch, training = self._scratch, self._scratch.training
        names = scratch.trainable if names is None else list(names)
        chosen = set(names)
        for name, parameter in scratch.parameters.items():
            parameter.requires_grad_(name in chosen)
        vectors = scratch.slices(names) if training.flat else [scratch.parameters[name] for name in names]
        optimizer = training.optimizer(vectors)
        for group in optimizer.param_groups:
            group["lr"] *= training.lr_decay ** (round - 1)
        total, count = torch.zeros((), device=scratch.device), 0
        self.model.train()
        with seeds.scope(self.seed, "dropout", round, self.id):
            for batch in self.batches(round):
                scratch.gradient.zero_()
                loss = self.loss(batch)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(batch[1])
                count += len(batch[1])
        return {"examples": float(len(self.train_examples)), "train_loss": float(total) / max(count, 1)}

    def evaluate(self) -> dict[str, float]:
        """``accuracy`` and ``loss`` over the client's test targets and, as ``examples``, how many those are."""
        loss, correct, count = 0.0, 0, 0
        self.model.eval()
        with torch.no_grad():
            for rows in torch.arange(len(self.test_examples)).split(self._scratch.training.evaluation_batch_size):
                inputs, targets = self.test_examples.batch(rows)
                logits, targets = self.model(inputs).flatten(0, -2), targets.flatten()
                loss += float(F.cross_entropy(logits, targets, reduction="sum"))
                correct += int((logits.argmax(-1) == targets).sum())
                count += int((targets != -100).sum())
        if count == 0:
            return {"examples": 0.0}
        return {"accuracy": correct / count, "loss": loss / count, "examples": float(count)}
