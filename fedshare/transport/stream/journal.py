"""What a server makes known of its callers: lines of its log, entries for the audit log, and why each was refused."""

import threading
from collections.abc import Callable
from typing import Protocol

from fedshare.machine.tally import Tally

REFUSED = 1000  # callers whose refusal is remembered; without TLS a caller may give any number


class Record(Protocol):
    def __call__(self, event: str, about: str, /, **what: str | int) -> None:
        """`about`: a client or an address."""


def _unrecorded(event: str, about: str, /, **what: str | int) -> None: ...


class Journal:
    """`say` prints a line. `quiet`: seconds in which the log says the same of a caller once."""

    def __init__(self, say: Callable[[str], None], quiet: float) -> None:
        self.say = say
        self.tally = Tally(say, quiet)
        self.record: Record = _unrecorded  # called when a client joins, is gone, or a caller is refused
        self.refusal: Callable[[str], None] = lambda reason: None  # called with the reason when a caller is refused
        self.refused: dict[int, str] = {}  # by client: why it was refused the last time, if it is not connected since
        self.changed = threading.Event()  # set when a client comes, goes or is refused

    def refuse(self, client: int, reason: str) -> None:
        """Remember why a client was refused."""
        if client in self.refused or len(self.refused) < REFUSED:
            self.refused[client] = reason
        self.changed.set()
