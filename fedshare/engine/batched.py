"""The batching engine: many clients' halves as coroutines, each suspended while it waits for its training.

Suspended clients that ask for the same kind of training are trained together. Which ones depends on the clients alone,
never on time. Torch's contexts belong to a thread and would leak from one coroutine to another, so a client is
suspended only in `Client.fit` and `Client.sums`, outside all of them; its random stream is saved and restored.
"""

import contextvars
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from greenlet import greenlet

from fedshare import seeds
from fedshare.data.dataset import Examples
from fedshare.engine.fitting import objection
from fedshare.engine.graphs import NotBatched
from fedshare.engine.plans import Plans
from fedshare.engine.replay import Replays, Start, cuda_graphs
from fedshare.engine.rows import Desk
from fedshare.engine.single import Body
from fedshare.engine.testing import Test, test
from fedshare.engine.together import Request, train
from fedshare.errors import brief, first_line
from fedshare.tasks import Task
from fedshare.tensors import Tensors
from fedshare.training.engine import Plain
from fedshare.training.fit import Batches, Fit, Steps
from fedshare.training.measure import Measure
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

log = logging.getLogger(__name__)
Result = TypeVar("Result")
MOST = 256  # clients of a group
CACHED, STORED = 2_000_000, 250_000_000  # numbers in all their models: what a processor's cache holds, and a GPU easily
FEW, CROWD = 16, 32  # clients that are worth a group of their own on a processor, and on a GPU


def group_size(scratch: Scratch) -> int:
    """Return how many clients are trained at once at most."""
    numbers = CACHED if scratch.device.type == "cpu" else STORED
    return max(1, min(MOST, numbers // max(1, len(scratch.flat))))


class Batched:
    """Clients of one group, each with its own model, trained together.

    `reasons`: why clients were trained by the plain engine, if any were. `start` is what records plans on a device.
    """

    def __init__(self, scratch: Scratch, training: Training, task: Task, start: Start = cuda_graphs) -> None:
        self.size, self.few = group_size(scratch), FEW if scratch.device.type == "cpu" else CROWD
        self.reasons: set[str] = set()
        self._objection = objection(scratch, training)
        self._desk = Desk(scratch)
        self._fresh = lambda: Plans(scratch, training, task, Replays(start(scratch.device), self._say))
        self._plans = self._fresh()
        self._together = self.size  # how many clients fit in memory, as far as it is known
        self._said: set[str] = set()

    def play(self, bodies: Sequence[Body[Result]]) -> list[Result]:
        """Return the result of each client's half. The first exception of any ends all."""
        with seeds.kept():
            lanes = [_Lane(self, self._desk, body) for body in bodies]
            try:
                for lane in lanes:
                    lane.resume()
                while waiting := [lane.request for lane in lanes if lane.request]:
                    for requests in _alike(waiting):
                        self._answer(requests)
                    for lane in lanes:
                        if lane.request:
                            lane.resume()
                return [lane.results[0] for lane in lanes]
            finally:
                self._desk.vacate()
                for lane in lanes:
                    lane.close()

    def refusal(self) -> str | None:
        """Return why a fit is left to the plain engine, before it is looked at."""
        return self._objection or (None if torch.is_grad_enabled() else "the strategy trains without gradients")

    def _answer(self, requests: list[Any]) -> None:
        """Answer each request, all of one key, as many at once as fit in the device's memory."""
        while requests:
            count = -(-len(requests) // -(-len(requests) // self._together))
            if self._serve(requests[:count]):
                requests = requests[count:]
                continue
            # Here no exception holds the tensors of what has failed any more.
            self._together, self._plans = -(-count // 2), self._fresh()
            if self._desk.base.device.type == "cuda":
                torch.cuda.empty_cache()
            self._say(f"out of memory with {count} clients at once: from now on at most {self._together}")

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.warning("engine=batched: %s", brief(line))

    def _serve(self, requests: list[Any]) -> bool:
        """Answer each request; what cannot be batched is left to the plain engine.

        Return False, and do nothing, if several clients' work does not fit in memory.
        """
        self._desk.vacate()
        before = [request.stream.position for request in requests]
        try:
            if isinstance(requests[0], Test):
                test(requests, self._plans)
            else:
                train(requests, self._plans)
        except torch.OutOfMemoryError as error:
            reason = "" if len(requests) > 1 else f"one client alone is out of memory: {first_line(error)}"
        except NotBatched as error:
            reason = str(error)
        except Exception as error:  # one client's fault, which the plain engine then meets in that client alone
            reason = f"some clients together raised {type(error).__name__}: {first_line(error)}"
        else:
            return True
        for request, position in zip(requests, before, strict=True):
            request.stream.rest()
            request.stream.position = position
        if reason:
            self.reasons.add(reason)
        return bool(reason)


class _Lane(Generic[Result]):
    """One client's coroutine, and the engine that it sees."""

    def __init__(self, hub: Batched, desk: Desk, body: Body[Result]) -> None:
        self.request: Request | Test | None = None
        self.results: list[Result] = []
        self._hub, self._row = hub, desk.row(self.draw)
        self._key: tuple[seeds.Key, ...] = ()
        self.position: seeds.Position | None = None
        self._drawing = False  # whether torch's generator is at this client's stream
        self._coroutine = greenlet(lambda: self.results.append(body(self._row, self)))
        self._coroutine.gr_context = contextvars.copy_context()

    def scope(self, *key: seeds.Key) -> AbstractContextManager[None]:
        """Name the stream that `draw` begins. Few clients draw, and a stream costs as much as a small step."""
        self._key, self.position = key, None
        return nullcontext()

    def draw(self) -> None:
        """Put torch's generator at this client's stream, until the client waits."""
        if not self._drawing:
            self._drawing = True
            if self.position is None:
                seeds.begin(*self._key)
            else:
                seeds.go_to(self.position)

    def rest(self) -> None:
        """Remember where this client's stream is."""
        if self._drawing:
            self.position, self._drawing = seeds.position(), False

    def sums(self, measure: Measure, examples: Examples) -> Tensors:
        """Wait for the test, as the client's `Engine`."""
        self._row.leave()
        self.request = request = Test(self._row, measure, examples, self)
        self._wait()
        return measure.sums(examples) if request.sums is None else request.sums

    def train(self, scratch: Scratch, training: Training, fit: Fit, steps: Steps) -> float:
        """Wait for the training, as the client's `Engine`."""
        assert scratch is self._row
        if reason := self._hub.refusal():
            self._hub.reasons.add(reason)
        else:
            assert isinstance(steps, Batches)
            rows = list(steps.rows)
            self._row.leave()
            self.request = request = Request(self._row, training, fit, steps, rows, self)
            self._wait()
            if request.loss is not None:
                return request.loss
            steps = replace(steps, rows=rows)
        self._row.mount()
        return Plain().train(scratch, training, fit, steps)

    def _wait(self) -> None:
        """Suspend this client until its request is answered."""
        assert self._coroutine.parent
        self._coroutine.parent.switch()
        self.request = None

    def resume(self) -> None:
        """Let the client go on until it waits again or ends."""
        self._coroutine.switch()
        self.rest()

    def close(self) -> None:
        if self._coroutine:
            self._coroutine.throw()  # GreenletExit: it ends its contexts


def _alike(requests: list[Request | Test]) -> list[list[Any]]:
    groups: dict[object, list[Request | Test]] = {}
    for request in requests:
        groups.setdefault(request.key, []).append(request)
    return list(groups.values())
