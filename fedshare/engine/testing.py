"""The tests of some clients at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.data.dataset import Examples
from fedshare.engine.batches import Batches, pooled
from fedshare.engine.graphs import NotBatched
from fedshare.engine.plans import Plans
from fedshare.engine.rows import Row, matrix, piece
from fedshare.engine.single import Stream
from fedshare.tasks import apart
from fedshare.tensors import Tensors
from fedshare.training.measure import Measure

Rows = Iterator[tuple[Tensor, Tensor, Tensor]]  # outputs, targets, and the client that each example is of


@dataclass
class Test:
    """A client that waits for a test of its model."""

    row: Row
    measure: Measure
    examples: Examples
    stream: Stream
    sums: Tensors | None = None  # the answer; None: the client has to test the model itself
    key: tuple[object, ...] = ("test",)


def test(requests: list[Test], plans: Plans) -> None:
    """Set the sums of each request. Raises NotBatched, or torch's OutOfMemoryError."""
    task = requests[0].measure.task
    if not apart.separable(task):
        raise NotBatched("the task's own loss or metrics are not sums over examples")
    first = requests[0].row
    with torch.no_grad():
        alike = all(request.row.same_as(first) for request in requests)
        batches = _of_one(requests) if alike else _each(requests, plans)
        found = apart.sums(task, len(requests), batches)
    for request, sums in zip(requests, found, strict=True):
        request.sums = sums


def _of_one(requests: list[Test]) -> Rows:
    """Test the one model that all requests share on all their examples."""
    first, sizes = requests[0], [len(request.examples) for request in requests]
    whole, _ = pooled([request.examples for request in requests], sum(sizes))
    if whole is None:
        raise NotBatched("the examples are read on demand")
    owners = torch.repeat_interleave(torch.tensor(sizes))
    first.row.mount()
    for rows in torch.arange(len(whole)).split(first.measure.training.evaluation_batch_size):
        inputs, targets = whole.batch(rows.to(first.row.device))
        yield first.measure.outputs(inputs), targets, owners[rows]
    first.row.lend_no_more()
    first.stream.rest()


def _each(requests: list[Test], plans: Plans) -> Rows:
    """Test each request's own model on its own examples, many at once."""
    requests, places = _longest_first(requests)
    most = requests[0].measure.training.evaluation_batch_size
    width = min(most, 1 << (len(requests[0].examples) - 1).bit_length())
    rows = [list(torch.arange(len(request.examples)).split(width)) for request in requests]
    device = requests[0].row.device
    batches, places = Batches([request.examples for request in requests], rows, device, width), places.to(device)
    models = matrix([request.row for request in requests])
    values = {name: piece(models, requests[0].row, name) for name in requests[0].row.moved}
    for step, batch in enumerate(batches):
        clients, active = len(batch.targets), batches.active[step]
        outputs = plans.outputs({name: value[:clients] for name, value in values.items()}, batch)
        whole = torch.ones(len(batch.targets), width, dtype=torch.bool, device=device)
        counts = (*batch.counts, whole)[0][:active]
        yield outputs[:active][counts], batch.targets[:active][counts], places[:active, None].expand_as(counts)[counts]


def _longest_first(requests: list[Test]) -> tuple[list[Test], Tensor]:
    """Return the requests, those with the most examples first, and the place of each in the list given."""
    order = sorted(range(len(requests)), key=lambda place: -len(requests[place].examples))
    return [requests[place] for place in order], torch.tensor(order)
