"""Gaussian directions, as in the paper, rounded to integers, so that sums of them are exact.

The last bits of logarithm and cosine depend on the machine. If they decide a rounding, two kinds of machine get
different models: unlike signs (`fedshare.directions.rademacher`), these directions do not promise equal bits. They are
also many times slower.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedshare.directions import philox
from fedshare.directions.message import PROBES, Entry, Origin, blocks


class Gaussian:
    name = "philox4x32-10/gaussian/1"
    bits = 8  # fractional bits of a direction's integers
    largest = 1706  # their largest magnitude: a 32-bit number gives at most 6.66 standard deviations

    def draw(self, origin: Origin, count: int, device: torch.device) -> Origin:
        return origin

    def displace(self, vector: Tensor, drawn: Origin, coefficients: Sequence[float]) -> None:
        for probe, coefficient in enumerate(coefficients):
            for start, end in blocks(len(vector)) if coefficient else ():
                z = torch.from_numpy(integers(drawn, probe, len(vector), start, end)).to(vector.device)
                vector[start:end] += (z * (coefficient * 2.0**-self.bits)).to(vector.dtype)

    def accumulate(self, into: Tensor, entries: Iterable[Entry], start: int, size: int) -> None:
        for origin, numbers in entries:
            for probe, number in enumerate(numbers):
                for first, last in blocks(len(into)) if number else ():
                    z = torch.from_numpy(integers(origin, probe, size, start + first, start + last)).to(into.device)
                    into[first:last] += (z * int(number)).to(into.dtype)


def integers(origin: Origin, probe: int, size: int, start: int, end: int) -> NDArray[np.int64]:
    """Return a direction's integers from `start` to `end`, by Box-Muller: two integers from two 32-bit numbers."""
    if not 0 <= probe < PROBES or size > 2**31:
        raise ValueError(f"probe {probe} of {PROBES}, {size} parameters of {2**31}")
    each = -(-size // 4)  # counters per probe
    first, last = start // 4, -(-end // 4)
    words = philox.words(origin.run, origin.counters(probe * each + first, probe * each + last))
    radius = np.sqrt(-2 * np.log((words[:, ::2] + 1.0) * 2.0**-32))
    angle = words[:, 1::2] * (2 * np.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)
    return np.rint(pairs[start - 4 * first :][: end - start] * 2.0**Gaussian.bits).astype(np.int64)
