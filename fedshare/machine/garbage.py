"""Tuning of the garbage collector for a server: it rescans long-lived objects often, and few of them ever die."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 10_000  # new objects: roughly what the answers of a hundred clients consist of


@contextmanager
def settled() -> Iterator[None]:
    """Inside, the collector ignores objects that exist already, mainly modules, and runs less often on the others."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_MANY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
