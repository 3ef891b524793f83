"""The split into training and test of data sets that are published without one: fixed, the same for every run."""

import numpy as np

from fedshare.seeds import numpy_generator


def stratified(labels: np.ndarray, test: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and of the test examples: the fraction `test` of each class, rounded down."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = numpy_generator("split", name, int(label)).permutation(members)
        held_out[order[: int(len(members) * test)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
