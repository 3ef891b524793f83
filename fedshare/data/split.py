"""The split into training and test of data sets that are published without one: fixed, the same for every run."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from fedshare.errors import UserError
from fedshare.seeds import Key, numpy_generator

_stream: ContextVar[tuple[Key, ...]] = ContextVar("stream", default=())


@contextmanager
def stream(*key: Key) -> Iterator[None]:
    """Inside, splits are drawn from the stream of `key`: those of a client's own data by its id."""
    token = _stream.set(key)
    try:
        yield
    finally:
        _stream.reset(token)


def stratified(labels: np.ndarray, test: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and of the test examples: the fraction `test` of each class, rounded down."""
    return _held_out(labels, {label: int(np.sum(labels == label) * test) for label in np.unique(labels)}, name)


def divided(labels: np.ndarray | None, count: int, test: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """As `stratified`, but the fraction `test` of all `count` examples, of each class as near to it as can be.

    Raises UserError where there would be nothing to train on, or nothing to test with.
    """
    if not 0 < test < 1:
        raise UserError(f"data.load.test_share={test}: must be above 0 and below 1")
    wanted = int(test * count)
    if not 0 < wanted < count:
        raise UserError(f"data: of {count} examples {wanted} are left for test: too few, or test_share too small")
    labels = np.zeros(count, np.int64) if labels is None else labels
    classes, sizes = np.unique(labels, return_counts=True)
    quota = sizes * (wanted / count)
    counts = np.floor(quota).astype(np.int64)
    counts[np.argsort(counts - quota, kind="stable")[: wanted - counts.sum()]] += 1
    return _held_out(labels, dict(zip(classes, counts, strict=True)), name)


def _held_out(labels: np.ndarray, counts: dict[int, int], name: str) -> tuple[np.ndarray, np.ndarray]:
    held_out = np.zeros(len(labels), dtype=bool)
    for label, count in counts.items():
        order = numpy_generator(*_stream.get(), "split", name, int(label)).permutation(np.flatnonzero(labels == label))
        held_out[order[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
