"""Rate-limited log lines about others, so that nobody can fill the operator's disk by causing them."""

import time
from collections import Counter
from collections.abc import Callable, Hashable

EVERY = 10.0  # seconds
EACH, IN_ALL = 6, 60  # most lines about one source, and about all, in that time
_SOURCES = 1000  # sources whose hidden lines are counted separately
OTHERS = "others"


class Tally:
    """Emits each line about a source once in `every` seconds, and then the number of lines it has hidden.

    A line about a state that may change back and forth, such as a connection, is logged with ``changes``: it may be
    repeated then, because the last line must be the current state; the limits apply as well. Call `flush` now and then.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        every: float = EVERY,
        now: Callable[[], float] = time.monotonic,
        in_all: int = IN_ALL,
    ) -> None:
        self._say, self._every, self._now, self._in_all = say, every, now, in_all
        self._said: dict[Hashable, float] = {}  # time, by source and line
        self._began = now()
        self._shown = Counter[str]()  # by source, since then
        self._hidden = Counter[str]()
        self._last: dict[str, str] = {}  # by source, the last hidden line

    def say(self, about: str, line: str, changes: bool = False) -> None:
        if self.admits(about, line, changes):
            self._say(line)

    def admits(self, about: str, line: str, changes: bool = False) -> bool:
        """Whether the caller may emit the line itself; if not, it is counted as hidden."""
        self.flush()
        now = self._now()
        repeated = not changes and now - self._said.get((about, line), -self._every) < self._every
        if repeated or self._shown[about] >= EACH or self._shown.total() >= self._in_all:
            about = about if about in self._hidden or len(self._hidden) < _SOURCES else OTHERS
            self._hidden[about] += 1
            self._last[about] = line
            return False
        self._said[about, line] = now
        self._shown[about] += 1
        return True

    def flush(self) -> None:
        """Report the hidden lines if the period is over."""
        now = self._now()
        if now - self._began < self._every:
            return
        hidden, last = self._hidden, self._last
        self._began, self._shown, self._hidden, self._last = now, Counter(), Counter(), {}
        self._said = {key: at for key, at in self._said.items() if now - at < self._every}
        shown = hidden.most_common(EACH)
        for about, count in shown:
            self._say(f"{about}: {count:,} more such lines in {self._every:g} s, the last: {last[about]}")
        if rest := hidden.total() - sum(count for _, count in shown):
            self._say(f"{len(hidden) - len(shown)} others: {rest:,} more such lines in {self._every:g} s")
