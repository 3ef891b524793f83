"""The batching engine: many clients' halves as coroutines, each suspended while it waits for its training.

Suspended clients that ask for the same kind of training are trained together. Which ones depends on the clients alone,
never on time. Torch's contexts belong to a thread and would leak from one coroutine to another, so a client is
suspended only in `Client.fit`, outside all of them; its random stream is the only one that is saved and restored.
"""

import contextvars
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from greenlet import greenlet

from fedshare.engine.fitting import objection
from fedshare.engine.plans import NotBatched, Plans
from fedshare.engine.rows import Desk, Row
from fedshare.engine.single import Body
from fedshare.engine.together import Request, train
from fedshare.tasks import Task
from fedshare.training.fit import Batches, Fit, Plain, Steps
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

Result = TypeVar("Result")
MOST, NUMBERS = 256, 2_000_000  # clients of a group, and numbers in all their models


def group_size(scratch: Scratch) -> int:
    """Return how many clients are trained at once at most: more would fall out of a processor's cache."""
    return max(1, min(MOST, NUMBERS // max(1, len(scratch.flat))))


class Batched:
    """Clients of one group, each with its own model, trained together."""

    def __init__(self, scratch: Scratch, training: Training, task: Task) -> None:
        self.size = group_size(scratch)
        self.reasons: set[str] = set()
        self.objection = objection(scratch, training)
        self.desk = Desk(scratch)
        self._plans = Plans(scratch, training, task)

    def play(self, bodies: Sequence[Body[Result]]) -> list[Result]:
        """Return the result of each client's half. The first exception of any ends all."""
        with torch.random.fork_rng(devices=[]):
            lanes = [_Lane(self, body) for body in bodies]
            try:
                for lane in lanes:
                    lane.resume()
                while waiting := [lane for lane in lanes if lane.request]:
                    for some in _alike(waiting):
                        self._train(some)
                    for lane in waiting:
                        lane.resume()
                return [lane.result() for lane in lanes]
            finally:
                self.desk.vacate()
                for lane in lanes:
                    lane.close()

    def _train(self, lanes: list["_Lane[Any]"]) -> None:
        requests = [lane.request for lane in lanes if lane.request]
        self.desk.vacate()
        try:
            losses: Sequence[float | None] = train(requests, self._plans)
        except NotBatched as error:
            self.reasons.add(str(error))
            losses = [None] * len(lanes)
        for lane, loss in zip(lanes, losses, strict=True):
            lane.loss = loss


class _Lane(Generic[Result]):
    """One client's coroutine, and the engine that it sees."""

    def __init__(self, hub: Batched, body: Body[Result]) -> None:
        self.request: Request | None = None
        self.loss: float | None = None  # the answer to `request`; None: it must be carried out by the plain engine
        self._hub, self._row = hub, hub.desk.row()
        self._results: list[Result] = []
        self._random = torch.get_rng_state()
        self._coroutine = greenlet(lambda: self._results.append(body(self._row, self)))
        self._coroutine.gr_context = contextvars.copy_context()

    def run(self, scratch: Scratch, training: Training, fit: Fit, steps: Steps) -> float:
        """Wait for the training, as the client's `Engine`."""
        loss = None
        if self._hub.objection:
            self._hub.reasons.add(self._hub.objection)
        elif not torch.is_grad_enabled():
            self._hub.reasons.add("the strategy trains without gradients")
        else:
            assert isinstance(scratch, Row)
            assert isinstance(steps, Batches)
            steps = replace(steps, rows=list(steps.rows))  # the plain engine may have to read them again
            self._hub.desk.clear()
            self.request = Request(scratch, training, fit, steps, self.stream)
            self._coroutine.parent.switch()
            self.request, loss = None, self.loss
        if loss is None:
            self._row.mount()
            return Plain().run(scratch, training, fit, steps)
        return loss

    def resume(self) -> None:
        """Let the client go on until it waits again or ends."""
        with self.stream():
            self._coroutine.switch()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Continue this client's random stream inside."""
        torch.set_rng_state(self._random)
        try:
            yield
        finally:
            self._random = torch.get_rng_state()

    def result(self) -> Result:
        return self._results[0]

    def close(self) -> None:
        if self._coroutine:
            self._coroutine.throw()  # GreenletExit: it ends its contexts


def _alike(lanes: list["_Lane[Any]"]) -> list[list["_Lane[Any]"]]:
    groups: dict[object, list[_Lane[Any]]] = {}
    for lane in lanes:
        if lane.request:
            groups.setdefault(lane.request.key, []).append(lane)
    return list(groups.values())
