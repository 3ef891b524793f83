"""Gradients of many clients in one pass: traced once for each shape, and replayed without a compiler."""

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedshare.data.dataset import Inputs, mapped, parts
from fedshare.engine.graphs import Graph, NotBatched, Result
from fedshare.engine.replay import Replays
from fedshare.errors import first_line
from fedshare.tasks import Losses, Task, models
from fedshare.tensors import Tensors
from fedshare.training import functional
from fedshare.training.forward import autocast
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

NEAR = 1e-3  # the largest relative difference between a plan's first gradient and the same of one client alone


class Batch(NamedTuple):
    """One step's data for some clients, or without the first dimension for one of them."""

    inputs: Inputs  # [clients, batch, ...]
    targets: Tensor  # [clients, batch, ...]
    counts: tuple[Tensor, ...] = ()  # [clients, batch]: which examples count, if not all do
    noise: tuple[Tensor, ...] = ()  # [clients, batch, ...]: the dropout masks, in the order of the model's layers

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        counts, noise = tuple(map(change, self.counts)), tuple(map(change, self.noise))
        return Batch(mapped(change, self.inputs), change(self.targets), counts, noise)


class Step(NamedTuple):
    gradients: list[Result]  # [clients, ...], one for each trained parameter
    sums: Tensor  # [clients]: sums of losses before the step
    weights: Tensor  # [clients]


class Dropout(NamedTuple):
    """One application of dropout in a training step."""

    shape: tuple[int, ...]  # of its input, the batch first
    dtype: torch.dtype
    rate: float

    def draw(self, batch: int) -> Tensor:
        """Return the mask as torch's own dropout draws it on a CPU, from the global generator, padded with zeros."""
        kept = 1 - self.rate
        noise = torch.empty(batch, *self.shape[1:], dtype=self.dtype).bernoulli_(kept)
        noise = noise.div_(kept) if kept else noise
        return nn.functional.pad(noise, (0, 0) * (noise.ndim - 1) + (0, self.shape[0] - batch))


class Plans:
    """The plans of one model and task, by shape."""

    def __init__(self, scratch: Scratch, training: Training, task: Task, replays: Replays) -> None:
        self._scratch, self._training, self._task, self._replays = scratch, training, task, replays
        exact = scratch.device.type == "cpu"  # a GPU's convolutions of float32 keep 11 bits (TF32)
        self._near = (NEAR if exact else 10 * NEAR) if training.precision == "float32" else 100 * NEAR
        self._tests: dict[Hashable, Graph] = {}
        self._plans: dict[Hashable, Graph] = {}
        self._dropouts: dict[Hashable, tuple[Dropout, ...]] = {}

    def step(self, trained: Tensors, others: Tensors, batch: Batch, products: bool = False) -> Step:
        """Return each client's gradient of its mean loss over `batch`, at the parameters given, ``[clients, ...]``.

        With `products`, a gradient that is a matrix product is returned as its two factors.

        Raises NotBatched if the model's code does not allow it, or gives other gradients than for one client alone.
        """
        key = tuple(trained), _form(batch), products
        if key not in self._plans:
            self._plans[key] = self._made(trained, others, batch, products)
        *gradients, sums, weights = self._plans[key](tuple(trained.values()), tuple(others.values()), *batch)
        return Step(gradients, sums, weights)  # type: ignore[arg-type]

    def outputs(self, values: Tensors, batch: Batch) -> Tensor:
        """Return each model's outputs in a test, ``[clients, batch, ...]``. Raises NotBatched as `step` does."""
        key = "outputs", _form(batch)
        if key not in self._tests:
            self._tests[key] = self._made_test(values, batch)
        return self._tests[key](tuple(values.values()), batch.inputs)[0]  # type: ignore[return-value]

    def dropouts(self, trained: Tensors, others: Tensors, batch: Batch) -> tuple[Dropout, ...]:
        """Return where the model applies dropout to a batch of this form, from one forward pass of the first client.

        Raises NotBatched if training the model changes its buffers.
        """
        key = _form(batch)[1:]
        if key not in self._dropouts:
            self._dropouts[key] = self._found(*_first(trained, others, batch))
        return self._dropouts[key]

    def _made_test(self, values: Tensors, batch: Batch) -> Graph:
        names = tuple(values)

        def outputs(tensors: tuple[Tensor, ...], inputs: Inputs) -> Tensor:
            with autocast(self._training, self._scratch.device):
                returned = functional.call(self._scratch, dict(zip(names, tensors, strict=True)), inputs)
            return models.select(returned, self._task.output)[0]

        self._scratch.module.eval()
        graph = Graph(torch.func.vmap(outputs), (tuple(values.values()), batch.inputs), self._replays)
        first, _, one = _first(values, {}, batch)
        alone, found = outputs(tuple(first.values()), one.inputs), graph(tuple(values.values()), batch.inputs)[0][0]
        if float((alone - found).norm()) > self._near * float(alone.norm()) + 1e-12:
            raise NotBatched("the model gives other outputs when several are evaluated at once")
        return graph

    def _made(self, trained: Tensors, others: Tensors, batch: Batch, products: bool) -> Graph:
        names, beside = tuple(trained), tuple(others)

        def gradients(params: tuple[Tensor, ...], rest: tuple[Tensor, ...], *data: Any) -> tuple[Tensor, ...]:
            def loss(params: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
                named = dict(zip(names, params, strict=True)) | dict(zip(beside, rest, strict=True))
                return self._loss(named, Batch(*data))

            found, (_, (sums, weights)) = torch.func.grad_and_value(loss, has_aux=True)(params)
            return *found, sums.detach(), weights

        values = tuple(trained.values()), tuple(others.values()), *batch
        self._scratch.train()
        try:
            with torch.enable_grad():
                graph = Graph(torch.func.vmap(gradients), values, self._replays, len(names) if products else 0)
        finally:
            self._scratch.module.eval()
        self._check(graph, gradients, trained, others, _half(batch))
        return graph

    def _check(
        self,
        graph: Graph,
        gradients: Callable[..., tuple[Tensor, ...]],
        trained: Tensors,
        others: Tensors,
        batch: Batch,
    ) -> None:
        """Raise NotBatched if the first client's gradients differ from those that it has alone, without padding."""
        *together, _, _ = graph(tuple(trained.values()), tuple(others.values()), *batch)
        params, rest, one = _first(trained, others, batch)
        self._scratch.train()
        *alone, _, _ = gradients(tuple(params.values()), tuple(rest.values()), *_unpadded(one))
        self._scratch.module.eval()
        first = [(each if isinstance(each, Tensor) else each.computed())[0] for each in together]
        pairs = list(zip(first, alone, strict=True))
        size = sum(float(wanted.square().sum()) for _, wanted in pairs) ** 0.5
        off = sum(float((found - wanted).square().sum()) for found, wanted in pairs) ** 0.5
        if off > self._near * size + 1e-12:
            raise NotBatched(f"the model mixes the examples of a batch: a gradient is off by {off / (size or 1):.1g}")

    def _loss(self, named: Tensors, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        masks = _Masking(batch.noise) if batch.noise else nullcontext()
        with masks, autocast(self._training, self._scratch.device):
            returned = functional.call(self._scratch, named, batch.inputs)
        losses = self._task.train_losses(returned, batch.targets)
        for counts in batch.counts:
            losses = Losses(*(torch.where(counts, value, 0) for value in losses))
        return losses.mean(), (losses.sums.sum(), losses.weights.sum())

    def _found(self, trained: Tensors, others: Tensors, one: Batch) -> tuple[Dropout, ...]:
        module = self._scratch.module
        before = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}
        self._scratch.train()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), _Listening() as heard:
                self._loss(trained | others, one)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any of a user's model; alone it may fail as well, and then says so itself
            raise NotBatched(f"the model fails: {first_line(error)}") from error
        finally:
            module.eval()
        for name, buffer in module.named_buffers():
            was, value = before[name]
            if buffer is not was or not torch.equal(buffer, value):
                raise NotBatched(f"training changes its buffer {name}")
        batch = len(one.targets)
        if any(dropout.shape[:1] != (batch,) for dropout in heard.dropouts):
            raise NotBatched("it applies dropout to something other than a batch")
        return tuple(heard.dropouts)


class _Listening(TorchFunctionMode):
    """Notes each application of dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropouts: list[Dropout] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.dropout and (asked := _asked(*args, **(kwargs or {}))):
            self.dropouts.append(Dropout(tuple(asked[0].shape), asked[0].dtype, asked[1]))
        return func(*args, **(kwargs or {}))


class _Masking(TorchFunctionMode):
    """Applies given masks in place of dropout's own."""

    def __init__(self, noise: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._noise = iter(noise)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.dropout and (asked := _asked(*args, **(kwargs or {}))):
            return asked[0] * next(self._noise)
        return func(*args, **(kwargs or {}))


def _asked(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[Tensor, float] | None:
    """Return input and rate of a dropout that has an effect."""
    return (input, p) if training and p > 0 else None


def _form(batch: Batch) -> tuple[Hashable, ...]:
    clients = len(batch.targets)
    tensors = [*parts(batch.inputs), batch.targets]
    shapes = tuple((tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors)
    return clients, shapes, bool(batch.counts)


def _first(trained: Tensors, others: Tensors, batch: Batch) -> tuple[Tensors, Tensors, Batch]:
    """Return the first client's part."""
    first = ({name: tensor[0] for name, tensor in tensors.items()} for tensors in (trained, others))
    return *first, batch.map(lambda tensor: tensor[0])  # type: ignore[return-value]


def _half(batch: Batch) -> Batch:
    """Return a batch in which half of each client's examples are padding, if some may be."""
    size = batch.targets.shape[1]
    half = torch.arange(size, device=batch.targets.device) < (size + 1) // 2
    return batch._replace(counts=tuple(half.expand_as(counts) for counts in batch.counts))


def _unpadded(one: Batch) -> Batch:
    if not one.counts:
        return one
    count = int(one.counts[0].sum())
    return one._replace(counts=()).map(lambda tensor: tensor[:count])
