"""Engines as a simulation sees them: they run clients' halves, some at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fedshare import seeds
from fedshare.tasks import Task
from fedshare.training.engine import Engine, Plain
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

Result = TypeVar("Result")
Body = Callable[[Scratch, Engine], Result]  # a client's half, on the model and with the engine given


class Stream(Protocol):
    """A client's random stream."""

    position: seeds.Position | None  # where it is, once it has begun

    def draw(self) -> None:
        """Put torch's own generator at it, until `rest`."""
        ...

    def rest(self) -> None: ...


class Playing(Protocol):
    """Made from a model, its training and its task, in each process that simulates clients."""

    size: int  # how many clients are best given at a time
    few: int  # with fewer, a group is not worth dividing among processes
    reasons: set[str]  # why some were trained by the plain engine instead

    def play(self, bodies: Sequence[Body[Any]]) -> list[Any]:
        """Return the result of each client's half. The first exception ends all."""
        ...


Make = Callable[[Scratch, Training, Task], Playing]


class Single:
    """One client after another, with the plain engine: the reference."""

    size = few = 1

    def __init__(self, scratch: Scratch, training: Training, task: Task) -> None:
        self.reasons: set[str] = set()
        self._scratch, self._engine = scratch, Plain()

    def play(self, bodies: Sequence[Body[Result]]) -> list[Result]:
        return [body(self._scratch, self._engine) for body in bodies]
