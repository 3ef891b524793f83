"""The training of some clients in lockstep: their models are the rows of one matrix, and a step of all is one plan."""

from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from fedshare.engine.batches import Batches
from fedshare.engine.plans import Dropout, Plans
from fedshare.engine.rows import Row, matrix, piece
from fedshare.engine.single import Stream
from fedshare.engine.stepping import Stepper
from fedshare.tensors import Tensors
from fedshare.training.fit import Batches as Steps
from fedshare.training.fit import Fit
from fedshare.training.settings import Training


@dataclass
class Request:
    """A client that waits for its training."""

    row: Row
    training: Training
    fit: Fit
    steps: Steps
    rows: list[Tensor]  # those of `steps`, which can be read only once
    stream: Stream
    loss: float | None = None  # the answer; None: the plain engine has to train the model

    @property
    def key(self) -> tuple[object, ...]:
        """What clients must have in common to be trained together."""
        asked = self.fit
        alike = asked.round, asked.names, asked.pull, tuple(asked.toward), tuple(asked.correction)
        # A user's own loss may be a mean over the batch, which padding would change.
        return alike if isinstance(self.steps.task.loss, str) else (*alike, *map(len, self.rows))


def train(requests: list[Request], plans: Plans) -> None:
    """Train the models of all requests, which have one key, and set the loss of each.

    Raises NotBatched, or torch's OutOfMemoryError, before any model is changed.
    """
    requests = sorted(requests, key=lambda request: -len(request.rows))
    first = requests[0]
    examples, rows = [request.steps.examples for request in requests], [request.rows for request in requests]
    batches = Batches(examples, rows, first.row.device)
    models = matrix([request.row for request in requests])
    others = {name: piece(models, first.row, name) for name in first.row.moved}
    trained = {name: others.pop(name) for name in first.fit.names}
    toward, corrections = (_stacked(requests, field) for field in ("toward", "correction"))
    stepper = Stepper(first.training, first.fit, list(trained.values()), toward, corrections)
    total, weight = torch.zeros(2, len(requests), device=models.device)
    with torch.no_grad():
        for step, batch in enumerate(batches):
            active, clients = batches.active[step], len(batch.targets)
            some = ({name: value[:clients] for name, value in tensors.items()} for tensors in (trained, others))
            now, beside = some
            dropouts = plans.dropouts(now, beside, batch)
            noise = _noise(dropouts, requests[:active], step, clients) if dropouts else ()
            found = plans.step(now, beside, batch._replace(noise=noise), stepper.descends)
            stepper.narrow(active)
            stepper.step(found.gradients)
            total[:active] += found.sums[:active]
            weight[:active] += found.weights[:active]
    losses = (total / weight.where(weight > 0, 1)).tolist()
    copied = models.to("cpu", copy=True)  # uploads are parts of it
    names = first.row.shared
    pieces = zip(*(piece(copied, first.row, name).unbind() for name in names), strict=True) if names else repeat(())
    for request, model, loss, mine in zip(requests, models.unbind(), losses, pieces, strict=False):
        request.loss = loss
        request.row.become(model, dict(zip(names, mine, strict=True)))


def _stacked(requests: list[Request], field: str) -> dict[int, Tensor]:
    """Return a field of the fits, by the position of the parameter, ``[clients, ...]``."""
    first = requests[0]
    found: list[Tensors] = [getattr(request.fit, field) for request in requests]
    return {
        place: torch.stack([tensors[name] for tensors in found]).to(first.row.device)
        for place, name in enumerate(first.fit.names)
        if name in found[0]
    }


def _noise(dropouts: tuple[Dropout, ...], active: list[Request], step: int, clients: int) -> tuple[Tensor, ...]:
    """Return the dropout masks of a step, each drawn from its client's own stream, ``[clients, batch, ...]``."""
    drawn = []
    for request in active:
        request.stream.draw()
        drawn.append([dropout.draw(len(request.rows[step])) for dropout in dropouts])
        request.stream.rest()
    blank = [torch.zeros_like(mask) for mask in drawn[0]]
    drawn += [blank] * (clients - len(drawn))
    return tuple(torch.stack(masks).to(active[0].row.device) for masks in zip(*drawn, strict=True))
