"""Differential privacy of a client's examples, and the budget that a number of steps spends.

Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1. The steps are in `poisson`.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from fedshare.errors import UserError
from fedshare.machine.extras import importing

_LOOSE = 100.0  # an epsilon this large promises nothing; a tighter bound would take gigabytes
_RANGE = (2.0**-20, 2.0**20)  # range of the search for noise_multiplier, starting at 1; beyond, sums lose precision
_CLOSE = 1e-9  # noises that differ by less are treated as equal


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """How private a client's training is towards anyone who sees its uploads.

    Each single example of a client is protected: with or without it, all uploads of the client in a run have about the
    same distribution (epsilon, delta; neighbours differ by one example more or less). Not protected are the number of a
    client's examples, which rate and steps depend on, and the results on its test examples. The budget is for one run
    and one client; two runs on the same examples, or an example that two clients have, spend the sum.
    """

    noise_multiplier: float  # noise deviation on a step's sum of gradients, in units of max_grad_norm; 0: none
    max_grad_norm: float  # L2 norm, over all trained tensors, to which each example's gradient is clipped; inf: off
    delta: float  # probability with which epsilon may fail; well below 1 / examples
    accountant: Literal["rdp", "prv"] = "rdp"  # of epsilon: Mironov 2017, or the tighter, slower Gopi et al. 2021
    chunk: int | None = None  # examples whose gradients are in memory at once; null: all of a step's

    def __post_init__(self) -> None:
        if not 0 <= self.noise_multiplier < math.inf:
            raise UserError(f"privacy.noise_multiplier must be finite and at least 0, not {self.noise_multiplier}")
        if not self.max_grad_norm > 0:
            raise UserError(f"privacy.max_grad_norm must be above 0, not {self.max_grad_norm}")
        if self.noisy and self.max_grad_norm == math.inf:
            raise UserError(
                "privacy.max_grad_norm=inf: only without noise, which is in units of it (noise_multiplier=0)"
            )
        if not 0 < self.delta < 1:
            raise UserError(f"privacy.delta must be in (0, 1), not {self.delta}")
        if self.accountant not in ("rdp", "prv"):
            raise UserError(f"privacy.accountant must be rdp or prv, not {self.accountant}")
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"privacy.chunk must be at least 1, not {self.chunk}")
        if self.noisy:
            _require_opacus()

    @property
    def noisy(self) -> bool:
        return self.noise_multiplier > 0

    def epsilon(self, steps: int, rate: float) -> float:
        """Return the epsilon of `steps` steps that include each example with probability `rate`; inf without noise."""
        if not self.noisy:
            return math.inf
        return _epsilon(self.accountant, float(self.noise_multiplier), float(rate), steps, float(self.delta))


def noise_for(
    epsilon: float, delta: float, rate: float, steps: int, accountant: Literal["rdp", "prv"] = "rdp"
) -> float:
    """Return the `noise_multiplier` with which `steps` steps at `rate` spend `epsilon`, or up to 1 % (0.01) less.

    The spending is that of `Privacy.epsilon`. At a jump of it, as from prv to rdp at 100, the result is the least noise
    below the jump. `steps` counts a client's steps in all rounds in which it takes part: epochs * ceil(examples /
    batch_size) in each; `rate` is batch_size / examples. Raises UserError if no noise from 2**-20 to 2**20 will do.
    """
    if not (0 < epsilon < math.inf and 0 < delta < 1 and 0 < rate <= 1 and steps >= 1):
        raise UserError(
            f"epsilon={epsilon}, delta={delta}, rate={rate}, steps={steps}: must be epsilon > 0, 0 < delta < 1, "
            "0 < rate <= 1 and steps >= 1"
        )
    _require_opacus()

    def spent(noise: float) -> float:
        return _epsilon(accountant, noise, float(rate), steps, float(delta))

    least, most = _RANGE
    low = high = 1.0
    while not spent(high) <= epsilon:
        low, high = high, high * 2
        if high > most:
            raise UserError(f"{_asked(epsilon, delta)}: no noise is enough: {most:g} spends {spent(most):.3g}")
    while spent(low) <= epsilon:
        low, high = low / 2, low
        if low < least:
            raise UserError(
                f"{_asked(epsilon, delta)}: hardly any noise is enough: {least:g} spends {spent(least):.3g}"
            )
    while epsilon - spent(high) > min(0.01, epsilon / 100) and high / low > 1 + _CLOSE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def _asked(epsilon: float, delta: float) -> str:
    return f"epsilon={epsilon}, delta={delta}"


@lru_cache(maxsize=4096)
def _epsilon(accountant: str, noise: float, rate: float, steps: int, delta: float) -> float:
    """Return an upper bound. If the tighter accountant gives no better one, or fails, the other's is used."""
    if steps == 0:
        return 0.0
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders, spent = _renyi(noise, rate)
    with _quiet():
        bound = float(get_privacy_spent(orders=orders, rdp=spent * steps, delta=delta)[0])
        if accountant == "rdp" or not bound < _LOOSE:
            return bound
        prv = PRVAccountant()
        prv.history = [(noise, rate, steps)]
        try:
            tighter = float(prv.get_epsilon(delta=delta))
        except (RuntimeError, ValueError):
            return bound
    return tighter if tighter < bound else bound  # also if it is NaN


@lru_cache(maxsize=4096)
def _renyi(noise: float, rate: float) -> tuple[list[float], np.ndarray]:
    """Return the Renyi divergence of one step at each order; for many steps it is the sum."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = RDPAccountant.DEFAULT_ALPHAS
    with _quiet():
        return orders, compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of opacus and numpy about valid cases: a rate of 1, an order at the end of the list."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _require_opacus() -> None:
    """Import opacus, which accounts for the noise, so that a broken one is found before a run begins."""
    with importing("opacus", "privacy.noise_multiplier"):
        import opacus.accountants  # noqa: F401
