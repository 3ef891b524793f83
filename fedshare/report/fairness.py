"""Fairness among clients: numbers about what each puts in and gets."""

import math
from collections.abc import Sequence

SPREAD = 1e-6  # accuracies that differ by less do not differ: a test of a million examples could not tell them apart


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation coefficient, -1 to 1; NaN where one of both does not spread, or for fewer than two pairs."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs")
    if len(a) < 2 or not all(map(math.isfinite, [*a, *b])):
        return math.nan
    first, second = (deviations(values) for values in (a, b))
    if first is None or second is None:
        return math.nan
    return max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(first, second, strict=True))))


def deviations(values: Sequence[float]) -> list[float] | None:
    """From the mean, scaled to length 1; None where the values do not spread."""
    scale = max(map(abs, values))
    if not scale:
        return None
    scaled = [value / scale for value in values]  # so that no square leaves the floats
    center = math.fsum(scaled) / len(scaled)
    apart = [value - center for value in scaled]
    length = math.sqrt(math.fsum(value * value for value in apart))
    return [value / length for value in apart] if length > SPREAD * math.sqrt(len(values)) else None


def collaborative(standalone: Sequence[float], final: Sequence[float]) -> float:
    """Collaborative fairness, -100 to 100: whether those whose own data make a good model get a good one.

    100 times Pearson's correlation of the clients' accuracy alone and after collaboration (Lyu et al. 2020; Xu and Lyu
    2020). NaN where either does not spread: one global model for all, tested on one test set, rewards nobody and
    nothing, and the correlation of that with anything is not 0 but undefined.
    """
    return 100 * pearson(standalone, final)


def jain(values: Sequence[float]) -> float:
    """Jain's index of equality, from 1/n (one has all) to 1 (all have alike): ``(sum x)^2 / (n sum x^2)``.

    Jain, Chiu and Hawe, "A Quantitative Measure of Fairness and Discrimination", 1984. NaN where nobody has anything.
    """
    scale = max(map(abs, values), default=0.0)
    if not scale or not math.isfinite(scale):
        return math.nan
    scaled = [value / scale for value in values]
    return math.fsum(scaled) ** 2 / (len(values) * math.fsum(value * value for value in scaled))
