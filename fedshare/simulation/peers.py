"""Peers without a server, in this process: each in its own thread, of which one runs at a time."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from fedshare.errors import RunHalted
from fedshare.machine.threads import one_thread
from fedshare.network import Peers, Purpose, Quotas
from fedshare.payload import Payload
from fedshare.population import Population
from fedshare.state import State

Result = TypeVar("Result")


class Table:
    """Peers take turns: each runs until it gathers, then the next runs. So they may share a model and torch's streams.

    `timeout` is the number of seconds that a peer waits for its turn.
    """

    def __init__(self, ids: Iterable[int], timeout: float = 3600.0) -> None:
        self.ids = sorted(ids)
        self._timeout = timeout
        self._waiting = list(self.ids)  # peers in the order of their turns, the current one first
        self._said: dict[int, dict[int, Payload]] = {}  # by round
        self._left = ""  # the reason why a peer has left early
        self._changed = threading.Condition()

    def run(self, act: Callable[[int, Peers], Result]) -> dict[int, Result]:
        """Return the result of `act` for each peer, called with its id and seat. The first peer's error ends all."""
        results, errors = dict[int, Result](), list[BaseException]()

        def sit(me: int) -> None:
            try:
                self._await_turn(me)
                with one_thread():
                    results[me] = act(me, Seat(self, me))
                with self._changed:
                    self._waiting.remove(me)
                    self._changed.notify_all()
            except BaseException as error:
                errors.append(error)
                with self._changed:
                    self._left = self._left or f"peer {me} has left: {error}"
                    self._changed.notify_all()

        threads = [threading.Thread(target=sit, args=(me,), daemon=True) for me in self.ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return dict(sorted(results.items()))

    def say(self, me: int, round: int, upload: Payload | None) -> dict[int, Payload]:
        said = self._said.setdefault(round, {})
        if upload is not None:
            said[me] = upload
        with self._changed:
            self._waiting.append(self._waiting.pop(0))
            self._changed.notify_all()
        self._await_turn(me)  # by then all the others have had theirs
        self._said.pop(round - 1, None)
        return dict(sorted(said.items()))

    def _await_turn(self, me: int) -> None:
        with self._changed:
            mine = self._changed.wait_for(lambda: self._left or self._waiting[0] == me, self._timeout)
            if self._left:
                raise RunHalted(self._left)
            if not mine:
                raise RunHalted(f"peer {me} waited {self._timeout:g} s for peer {self._waiting[0]}")


@dataclass(frozen=True)
class Seat:
    """One peer's `Peers`."""

    table: Table
    me: int

    def ids(self, round: int) -> list[int]:
        return self.table.ids

    def gather(self, round: int, upload: Payload | None, quotas: Quotas | None = None) -> dict[int, Payload]:
        return self.table.say(self.me, round, upload)


class Player:
    """A simulated peer's client side: it answers downloads and keeps its memory."""

    def __init__(self, population: Population, me: int) -> None:
        self.state: State = {}
        self._population, self._me = population, me

    def __call__(self, purpose: Purpose, round: int, download: Payload) -> Payload:
        answer = self._population.answer(purpose, round, self._me, download, self.state)
        if purpose is Purpose.TRAIN:
            self.state = answer.state
        return answer.payload
