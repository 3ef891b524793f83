"""The result of a finished round, and the duration of its phases."""

import time
from dataclasses import dataclass
from typing import Any

from fedshare.rounds.chain import Link
from fedshare.state import State


@dataclass(frozen=True)
class Round:
    """The result of a finished round."""

    number: int
    state: State  # the server's memory
    link: Link  # of the digest chain
    row: dict[str, Any]  # the metrics, ready for JSON


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.laps[phase] = round(now - self._last, 6)
        self._last = now
