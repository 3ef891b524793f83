"""Orderly shutdown on SIGTERM, as on Ctrl-C."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN = 1.0  # seconds after which a lost KeyboardInterrupt is raised again


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt.

    Python discards an exception that is raised in a destructor or in a callback of the garbage collector, so it is
    raised again until the block ends, unless it is being handled.
    """

    def stop(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if not _handled():
            raise KeyboardInterrupt

    before = [signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGTERM, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def _handled() -> bool:
    """Whether a KeyboardInterrupt is on its way through `except` and `finally` blocks."""
    error = sys.exc_info()[1]
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
