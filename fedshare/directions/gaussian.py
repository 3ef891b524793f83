"""Gaussian directions, the paper's: rounded to integers, so that sums of them are exact.

Logarithm and cosine are a machine's own in their last bits, and where that decides a rounding, two kinds of machines
get two models: what signs (`fedshare.directions.rademacher`) promise, this does not. It is also many times slower.
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
    bits = 8  # of a direction's integers behind the point
    largest = 1706  # of their magnitudes: a 32-bit number gives no more than 6.66 standard deviations

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
    """A direction's integers from parameter `start` to `end`, by Box and Muller: of two 32-bit numbers, two."""
    if not 0 <= probe < PROBES or size > 2**31:
        raise ValueError(f"probe {probe} of {PROBES}, {size} parameters of {2**31}")
    each = -(-size // 4)  # counters of a probe
    first, last = start // 4, -(-end // 4)
    words = philox.words(origin.run, origin.counters(probe * each + first, probe * each + last))
    radius = np.sqrt(-2 * np.log((words[:, ::2] + 1.0) * 2.0**-32))
    angle = words[:, 1::2] * (2 * np.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)
    return np.rint(pairs[start - 4 * first :][: end - start] * 2.0**Gaussian.bits).astype(np.int64)
