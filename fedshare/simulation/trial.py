"""One real step before anything is created, so that what cannot work is reported now, by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from fedshare import seeds
from fedshare.client import Client
from fedshare.data.dataset import parts
from fedshare.errors import UserError, first_line
from fedshare.population import Population
from fedshare.tasks import Losses
from fedshare.training.engine import Plain
from fedshare.training.fit import Batch, Batches, Fit
from fedshare.training.private.noise import Stream
from fedshare.training.private.poisson import Poisson

Given = ParamSpec("Given")
Result = TypeVar("Result")
Named = Callable[[Exception], str]  # names the failed part, given the exception


def attempt(population: Population) -> None:
    """Take a training step on the smallest batch of any client, test on it, and restore the model.

    Raises UserError if the model, the task, the optimizer or the privacy settings do not allow it.
    """
    scratch, training, task = population.scratch, population.training, population.task
    if population.stand_in:  # no client's data are here
        population = replace(population, shares=[population.stand_in], stand_in=None)
    id, rows = _smallest(population)
    client = population.client(id, {})
    try:
        with seeds.scope("trial"):
            client.load({})
            batch, backward = _step(client, population, rows)
            named = _saying(backward, lambda error: f"model: fails in training: {_why(error, batch)}")
            step = _saying(Plain().train, lambda error: f"client.optimizer: a step fails: {first_line(error)}")
            step(scratch, training, Fit(round=1, names=tuple(scratch.trainable)), _One(batch, named))
            client.load({})
            with torch.no_grad():
                test = _saying(task.sums, lambda error: f"task: a test fails: {first_line(error)}")
                task.scores(test(client.outputs(batch[0]), batch[1]))
    finally:
        scratch.load({})


@dataclass(frozen=True)
class _One:
    """A single step."""

    batch: Batch
    backward: Callable[[Batch], Losses]

    def batches(self) -> Iterator[Batch]:
        yield self.batch


def _step(client: Client, population: Population, rows: Tensor) -> tuple[Batch, Callable[[Batch], Losses]]:
    """Return the batch to step on and its gradient function; with Poisson samples, the batch is one example."""
    scratch, training, task = population.scratch, population.training, population.task
    if training.sampling != "poisson":
        examples = client.train_examples.subset(rows)
        return examples.batch(slice(None)), Batches(scratch, task, training, examples, []).backward
    one = client.train_examples.subset(rows[:1])
    trained = {name: scratch.parameters[name] for name in scratch.trainable}
    scratch.train()  # otherwise a BatchNorm would go unnoticed
    poisson = Poisson(scratch.module, task, trained, one, training, None, Stream(), Stream())
    return one.batch(slice(None)), poisson.backward


def _smallest(population: Population) -> tuple[int, Tensor]:
    """Return the client with the smallest batch, and that batch's rows."""
    known = [(min(population.training.pieces(share.size)), id) for id, share in enumerate(population.shares)]
    size, id = min(known)
    return id, torch.arange(size)


def _saying(act: Callable[Given, Result], what: Named) -> Callable[Given, Result]:
    """Return `act` with its errors turned into UserErrors."""

    def acted(*given: Given.args, **named: Given.kwargs) -> Result:
        try:
            return act(*given, **named)
        except UserError:
            raise
        except Exception as error:  # any user's model, loss, optimizer or metric
            raise UserError(what(error)) from error

    return acted


def _why(error: Exception, batch: Batch) -> str:
    line, (inputs, targets) = first_line(error), batch
    if len(targets) == 1 and "more than 1 value per channel" in line:  # torch's message from every BatchNorm
        return f"{line}: a client has a batch of one, which a BatchNorm cannot take; GroupNorm and LayerNorm can"
    if "does not require grad" in line:  # torch's message for a result detached from its parameters
        return f"{line}: task.loss, or the model, must not detach what it gives"
    given = ", ".join(_described(part) for part in parts(inputs))
    return f"{line} (inputs are {given}; targets {_described(targets)})"


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
