"""How long a deployment's clients are waited for."""

import math
from collections import deque
from dataclasses import dataclass

REMEMBERED = 10  # exchanges by which a deadline goes


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Without any of it everybody is waited for as long as they may take, in every round."""

    deadline_factor: float | None = None  # times the slowest answer of the last rounds is a deadline; None: never
    deadline_floor: float = 0.0  # and never less than so many seconds
    suspend_after: int | None = None  # rounds missed in a row until a client is suspended; None: never
    quorum: float = 1.0  # the share of those asked with whose answers a round is closed

    def enough(self, asked: int) -> int:
        """How many answers close a round in which so many were asked."""
        return max(1, math.ceil(self.quorum * asked - 1e-9))  # 0.07 * 100 is a little more than 7


class Deadline:
    """How many seconds those asked have for their answers: at most `most`, and all of it until somebody has answered.

    `grace` is added to the floor: who is cut off for so long, and comes back, has missed nothing.
    """

    def __init__(self, pace: Pace, most: float, grace: float = 0.0) -> None:
        self._factor, self._least, self._most = pace.deadline_factor, pace.deadline_floor + grace, most
        self._slowest: deque[float] = deque(maxlen=REMEMBERED)

    def seconds(self) -> float:
        if self._factor is None or not self._slowest:
            return self._most
        return min(self._most, max(self._least, round(self._factor * max(self._slowest), 1)))

    def saw(self, slowest: float) -> None:
        """The last answer that could be used came after so many seconds."""
        self._slowest.append(slowest)
