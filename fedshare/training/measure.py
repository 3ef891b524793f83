"""Evaluation of the current model: its losses, and the sums of a test."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.data.dataset import Examples, Inputs
from fedshare.tasks import Task, models
from fedshare.tasks.task import add
from fedshare.tensors import Tensors
from fedshare.training import functional
from fedshare.training.fit import Batch
from fedshare.training.forward import arranged, autocast
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training


@dataclass(frozen=True)
class Measure:
    scratch: Scratch
    training: Training
    task: Task

    def outputs(self, inputs: Inputs) -> Tensor:
        """Return the model's main output for a batch's inputs."""
        with autocast(self.training, self.scratch.device):
            return self.task.outputs(self.scratch.module, arranged(self.training, inputs))

    def loss(self, batch: Batch) -> Tensor:
        """Return the task's loss, averaged over the batch's targets."""
        inputs, targets = batch
        return self.task.losses(self.outputs(inputs), targets).mean()

    def losses(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Return `loss` at each of `vectors` ``[n, size]`` in place of the scratch's own, evaluated together: ``[n]``.

        If the model's code cannot be batched, they are evaluated one after another, and the last one remains loaded.
        """
        inputs, targets = batch

        def loss(params: Tensors) -> Tensor:
            with autocast(self.training, self.scratch.device):
                returned = functional.call(self.scratch, params, inputs)
            return self.task.losses(models.select(returned, self.task.output)[0], targets).mean()

        try:
            return torch.func.vmap(loss)(self.scratch.batched(vectors))
        except RuntimeError:
            return torch.stack([(self.scratch.vector.copy_(vector), self.loss(batch))[1] for vector in vectors])

    def loss_over(self, examples: Examples) -> float:
        """Return the mean loss over all of `examples`; 0 if none of their targets counts."""
        total, weight = 0.0, 0.0
        with torch.no_grad():
            for inputs, targets in self._in_turn(examples):
                sums, weights = self.task.losses(self.outputs(inputs), targets)
                total += float(sums.sum())
                weight += float(weights.sum())
        return total / weight if weight else 0.0

    def sums(self, examples: Examples) -> Tensors:
        """Return the sums of a test on `examples`."""
        total = self.task.zeros()
        self.scratch.module.eval()
        with torch.no_grad():
            for inputs, targets in self._in_turn(examples):
                total = add(total, self.task.sums(self.outputs(inputs), targets))
        return total

    def _in_turn(self, examples: Examples) -> Iterator[Batch]:
        for rows in torch.arange(len(examples)).split(self.training.evaluation_batch_size):
            if len(rows):
                yield examples.batch(rows.to(self.scratch.device))
