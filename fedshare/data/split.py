"""Fixed training and test splits for data sets published without one, the same in every run."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from fedshare.errors import UserError
from fedshare.seeds import Key, numpy_generator

_stream: ContextVar[tuple[Key, ...]] = ContextVar("stream", default=())


@contextmanager
def stream(*key: Key) -> Iterator[None]:
    """Draw splits from the stream of `key` inside this context; for a client's own data, a key with its id."""
    token = _stream.set(key)
    try:
        yield
    finally:
        _stream.reset(token)


def stratified(labels: np.ndarray, test: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted indices of training and test examples: the fraction `test` of each class, rounded down."""
    return _held_out(labels, {label: int(np.sum(labels == label) * test) for label in np.unique(labels)}, name)


def divided(labels: np.ndarray | None, count: int, test: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Like `stratified`, but the fraction `test` of all `count` examples, and of each class as nearly as possible.

    Raises UserError if the training or the test part would be empty.
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
