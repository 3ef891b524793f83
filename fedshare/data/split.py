"""The split into training and test of data sets that are published without one: fixed, the same for every run."""

import numpy as np

from fedshare.errors import UserError
from fedshare.seeds import numpy_generator


def stratified(labels: np.ndarray, test: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and of the test examples: the fraction `test` of each class, rounded down."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = numpy_generator("split", name, int(label)).permutation(members)
        held_out[order[: int(len(members) * test)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def divided(labels: np.ndarray | None, count: int, test: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """As `stratified`; where the `count` examples have no classes, the fraction `test` of all of them.

    Raises UserError where there would be nothing to train on, or nothing to test with.
    """
    if not 0 < test < 1:
        raise UserError(f"data.load.test_share={test}: must be above 0 and below 1")
    if labels is not None:
        kept, held_out = stratified(labels, test, name)
    else:
        order = np.argsort(numpy_generator("split", name).random(count), kind="stable")
        kept, held_out = np.sort(order[int(test * count) :]), np.sort(order[: int(test * count)])
    if not len(kept) or not len(held_out):
        raise UserError(
            f"data: of {count} examples {len(held_out)} are left for test: too few, or test_share too small"
        )
    return kept, held_out
