"""An app that waits for more nodes than there will ever be is ended, in one line, instead of waiting for ever."""

import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from traceback import walk_stack

from fedshare.errors import UserError
from fedshare.transport.flower import private

PATIENCE = 10.0  # seconds
_PAUSES = 3  # the fewest that make up the patience: a process that was stopped for a while has not waited
_IDLE = 0.1  # the part of the time that may be computing
_ENDLESS = 100_000  # questions in a row: a loop without pauses


class Waiting:
    """Told of every question for the nodes and of every message, `asked` ends an app that can only go on asking.

    `everyone` is how many nodes there are when all are there, and `flag` what said so. Where Flower's own code waits,
    the number it waits for is known. An app's own loop is known by this: the thread that runs the app asks from the
    same places for `patience` seconds, nothing is sent meanwhile, and the process does next to nothing else. `now` and
    `computed` are the time and the processor time of this process, in seconds.
    """

    def __init__(
        self,
        everyone: int,
        flag: str,
        patience: float = PATIENCE,
        now: Callable[[], float] = time.monotonic,
        computed: Callable[[], float] = time.process_time,
    ) -> None:
        self.verdict = ""  # why the app was ended
        self._everyone, self._flag, self._patience = everyone, flag, patience
        self._now, self._computed = now, computed
        self._app = threading.get_ident()
        self._at_work = 0  # messages; an app may send from several threads
        self._lock = threading.Lock()
        self._places: set[Hashable] = set()  # where the questions came from since the last message
        self._asked_at = self._waited = 0.0  # of `now`
        self._computed_at = 0.0  # of `computed`, when the waiting began
        self._questions = 0

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While a message is on its way, and in one process at work."""
        with self._lock:
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1
            self._places.clear()

    def asked(self) -> None:
        """Raises UserError where the app waits for nodes that will never be there."""
        all_there_will_be = f"{self._flag} {self._everyone} is all there will be"
        if (wanted := private.awaited_nodes()) > self._everyone:
            self._end(f"the app waits for {wanted} nodes, and {all_there_will_be}")
        if threading.get_ident() == self._app and not self._at_work and self._too_long():
            asked = f"the app asked for its nodes for {self._patience:g} s (--wait) and sent nothing"
            self._end(f"{asked}: {all_there_will_be}")

    def _too_long(self) -> bool:
        now = self._now()
        pause, self._asked_at = now - self._asked_at, now
        place = tuple((frame.f_code, frame.f_lasti) for frame, _ in walk_stack(None))
        if place not in self._places:  # something other than going round in a loop
            self._places.add(place)
            self._waited, self._computed_at, self._questions = 0.0, self._computed(), 0
            return False
        self._questions += 1
        self._waited += min(pause, self._patience / _PAUSES)
        if self._waited < self._patience:
            return False
        return self._questions >= _ENDLESS or self._computed() - self._computed_at <= _IDLE * self._waited

    def _end(self, line: str) -> None:
        told, self.verdict = self.verdict, line
        if threading.get_ident() == self._app:
            raise UserError(line)
        # The app's thread sleeps until this one tells it of more nodes. Only a real signal wakes it; `serve` hears it.
        if not told and self._app == threading.main_thread().ident and callable(signal.getsignal(signal.SIGTERM)):
            signal.pthread_kill(self._app, signal.SIGTERM)
