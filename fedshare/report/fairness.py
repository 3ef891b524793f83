"""Measures of fairness among clients: what each contributes and receives."""

import math
from collections.abc import Sequence

SPREAD = 1e-6  # smaller differences of accuracy are ignored: a test of a million examples could not show them


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the correlation coefficient, -1 to 1; NaN if either is constant, or for fewer than two pairs."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs")
    if len(a) < 2 or not all(map(math.isfinite, [*a, *b])):
        return math.nan
    first, second = (deviations(values) for values in (a, b))
    if first is None or second is None:
        return math.nan
    return max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(first, second, strict=True))))


def deviations(values: Sequence[float]) -> list[float] | None:
    """Return the deviations from the mean, scaled to length 1; None if the values are constant."""
    scale = max(map(abs, values))
    if not scale:
        return None
    scaled = [value / scale for value in values]  # so that squares do not overflow
    center = math.fsum(scaled) / len(scaled)
    apart = [value - center for value in scaled]
    length = math.sqrt(math.fsum(value * value for value in apart))
    return [value / length for value in apart] if length > SPREAD * math.sqrt(len(values)) else None


def collaborative(standalone: Sequence[float], final: Sequence[float]) -> float:
    """Return collaborative fairness, -100 to 100: whether clients whose own data make a good model receive a good one.

    100 times Pearson's correlation of the clients' accuracy alone and after collaboration (Lyu et al. 2020; Xu and Lyu
    2020). NaN if either is constant: one global model for all, tested on one test set, rewards nobody, and then the
    correlation is not 0 but undefined.
    """
    return 100 * pearson(standalone, final)


def jain(values: Sequence[float]) -> float:
    """Return Jain's index of equality, from 1/n (one has all) to 1 (all equal): ``(sum x)^2 / (n sum x^2)``.

    Jain, Chiu and Hawe, "A Quantitative Measure of Fairness and Discrimination", 1984. NaN if all values are 0.
    """
    scale = max(map(abs, values), default=0.0)
    if not scale or not math.isfinite(scale):
        return math.nan
    scaled = [value / scale for value in values]
    return math.fsum(scaled) ** 2 / (len(values) * math.fsum(value * value for value in scaled))
