"""The garbage collector of a process that serves: it looks at every object there is, time and again, and few die so."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 10_000  # new objects, more or less what a hundred clients' answers are made of


@contextmanager
def settled() -> Iterator[None]:
    """Inside, what was there before is passed over, modules above all, and the rest is looked at less often."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_MANY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
