"""The end of a peer's part in a run, when it is asked to leave."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fedshare.errors import RunHalted
from fedshare.experiments.hosts.participant import Part
from fedshare.experiments.running.rounds import rounds
from fedshare.experiments.tracking import Tracker
from fedshare.peers.gathering import Gathering
from fedshare.report.clock import say
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Population


class Leaving:
    """A network that ends a peer's run between two rounds, when SIGTERM or SIGINT has asked for it; twice: at once.

    It also ends a run that is `over`: the others have finished it, and this peer was away.
    """

    def __init__(self, network: Gathering, over: Callable[[], bool] = lambda: False) -> None:
        self._network, self._over = network, over
        self._asked, self._joining, self._joined = False, False, False
        self.left = False
        self.memories, self.exchange = network.memories, network.exchange

    def client_ids(self) -> list[int]:
        if self._asked:
            self._leave()
        self._joining, self._joined = not self._joined, True
        try:
            ids = self._network.client_ids()
        finally:
            self._joining = False
        if self._over():
            raise RunHalted(f"the others have finished the run: peer {self._network.me} has it up to round {self.done}")
        return ids

    @property
    def done(self) -> int:
        """The last round done."""
        return self._network.start

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Inside, the first signal asks this peer to leave."""

        def ask(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
            if self._joining:  # it waits for others, perhaps for minutes, and has nothing to finish
                self._leave()
            say(f"peer {self._network.me} leaves when its round is over; a second signal ends it now")

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _leave(self) -> None:
        self.left = True
        raise RunHalted(f"peer {self._network.me} leaves")


def played(part: Part, network: Leaving, population: Population, start: Checkpoint | None, watcher: Tracker) -> bool:
    """Run the rounds after `start`; return whether they are over, and this peer was not asked to leave before."""
    try:
        rounds(
            *(part.config, part.folder, network, population, start, None, watcher),
            interrupts=network.leaving,
            alone=True,
        )
    except RunHalted:
        if not network.left:
            raise
        say(f"peer {part.me} leaves after round {network.done}; the same command goes on with {part.folder.path}")
        return False
    return True
