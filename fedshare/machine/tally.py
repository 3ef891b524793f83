"""Lines of a log about others, at a bounded rate: whoever causes them may not fill the operator's disk with them."""

import time
from collections import Counter
from collections.abc import Callable, Hashable

EVERY = 10.0  # seconds
EACH, IN_ALL = 6, 60  # lines about one, and about all, in that time
_SOURCES = 1000  # of whom it is known how many lines were not shown
OTHERS = "others"


class Tally:
    """Says each line about somebody once in `every` seconds, and then how many it has not said.

    A fact that may come and go again, such as that somebody is connected, is said with ``changes``: then a line may be
    repeated, for what was said last must be so, and no more than a few are said either. `flush` is to be called now
    and then.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        every: float = EVERY,
        now: Callable[[], float] = time.monotonic,
        in_all: int = IN_ALL,
    ) -> None:
        self._say, self._every, self._now, self._in_all = say, every, now, in_all
        self._said: dict[Hashable, float] = {}  # when, by whom it is about and the line
        self._began = now()
        self._shown = Counter[str]()  # since then, by whom they are about
        self._hidden = Counter[str]()
        self._last: dict[str, str] = {}  # of those hidden

    def say(self, about: str, line: str, changes: bool = False) -> None:
        if self.admits(about, line, changes):
            self._say(line)

    def admits(self, about: str, line: str, changes: bool = False) -> bool:
        """Whether the caller is to say the line itself; where not, it is counted."""
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
        """Say of how much nothing was said, when it is time."""
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
