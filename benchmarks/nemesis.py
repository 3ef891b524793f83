"""Faults that befall peers on this machine, drawn by a seed: to their processes, and to their connections."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from proxy import DOWN, UP, Proxy

GRACE = 5.0  # seconds until peers go on without one that is gone
SHORT, LONG = (0.2, 0.6 * GRACE), (1.2 * GRACE, 2.5 * GRACE)  # seconds of a fault: within the grace, and beyond it
Undo = Callable[[], None]


class Victim(Protocol):
    """A process, the proxy in front of it, and the named points in its code at which it can kill itself."""

    proxy: Proxy
    failpoints: tuple[str, ...]

    def start(self, failpoint: str = "") -> None: ...

    def kill(self) -> None: ...

    def signal(self, number: signal.Signals) -> None: ...

    def is_running(self) -> bool: ...


class Nemesis:
    """Brings faults upon `victims`, and ends each of them after the time that was drawn for it."""

    def __init__(self, victims: list[Victim], draw: random.Random) -> None:
        self._victims, self._draw = victims, draw
        self._due = list[tuple[float, int, Undo]]()  # when, of which victim, and what ends it
        self.faults = Counter[str]()

    def act(self) -> None:
        """End the faults whose time is over, and begin another with a victim that has none."""
        self.heal(time.monotonic())
        suffering = {victim for _, victim, _ in self._due}
        free = [number for number in range(len(self._victims)) if number not in suffering]
        if not free:
            return
        number = self._draw.choice(free)
        name = self._draw.choice(sorted(_FAULTS))
        lasts = self._draw.uniform(*self._draw.choice((SHORT, SHORT, LONG)))
        undo = _FAULTS[name](self._victims[number], self._draw)
        self.faults[name] += 1
        self._due.append((time.monotonic() + lasts, number, undo))

    def heal(self, now: float | None = None) -> None:
        """End the faults that are due at `now`; None: all."""
        for due in [one for one in self._due if now is None or one[0] <= now]:
            self._due.remove(due)
            due[2]()


def _killed(victim: Victim, draw: random.Random) -> Undo:
    victim.kill()
    return victim.start


def _killed_at_a_point(victim: Victim, draw: random.Random) -> Undo:
    """Restarted so that it kills itself at a named point, a few passes later."""
    victim.kill()
    victim.start(f"{draw.choice(victim.failpoints)}:{draw.randint(1, 20)}")

    def again() -> None:
        victim.kill()  # if it has not passed the point so often
        victim.start()

    return again


def _stopped(victim: Victim, draw: random.Random) -> Undo:
    victim.signal(signal.SIGSTOP)
    return lambda: victim.signal(signal.SIGCONT)


def _black_hole(victim: Victim, draw: random.Random) -> Undo:
    victim.proxy.hold()
    return victim.proxy.release


def _reset(victim: Victim, draw: random.Random) -> Undo:
    victim.proxy.cut()
    return _nothing


def _reset_within(victim: Victim, draw: random.Random) -> Undo:
    """Reset somewhere in the next bytes."""
    victim.proxy.cut_after(draw.choice((UP, DOWN)), draw.randrange(2000))
    return _nothing


def _flipped(victim: Victim, draw: random.Random) -> Undo:
    victim.proxy.spoil(draw.choice((UP, DOWN)))
    return _nothing


def _delayed(victim: Victim, draw: random.Random) -> Undo:
    victim.proxy.delay = draw.uniform(0.01, 0.3)

    def undo() -> None:
        victim.proxy.delay = 0.0

    return undo


def _slow(victim: Victim, draw: random.Random) -> Undo:
    victim.proxy.rate = draw.uniform(2e3, 2e4)

    def undo() -> None:
        victim.proxy.rate = 0.0

    return undo


def _nothing() -> None: ...


_FAULTS: dict[str, Callable[[Victim, random.Random], Undo]] = {
    "kill -9": _killed,
    "kill -9 at a failpoint": _killed_at_a_point,
    "SIGSTOP": _stopped,
    "black hole": _black_hole,
    "reset": _reset,
    "reset within a message": _reset_within,
    "bit flipped": _flipped,
    "delay": _delayed,
    "2 to 20 kB/s": _slow,
}
