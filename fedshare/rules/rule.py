"""The interface of a rule, and arithmetic that rules share."""

import itertools
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fedshare.errors import UserError
from fedshare.rules.matrix import by_columns, ordered


@runtime_checkable
class Rule(Protocol):
    """Aggregates the updates of all clients into one.

    A rule does not depend on the order of the clients, except that the first wins a tie. Its `f`, if any, is the number
    of adversaries it is to withstand, and `withstands(n)` the number it can withstand among n updates; if that is less,
    it withstands that many, and `weakness` reports it.
    """

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the aggregate ``[d]`` of `updates`, ``[clients, d]``, and each client's share in it, if defined.

        `centre` is the previous round's aggregate, initially 0: all that a rule may know of the past.
        """
        ...


def at_least(least: int, **values: int) -> None:
    """Raise UserError if any of `values` is less than `least`."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}")


def above_zero(**values: float) -> None:
    """Raise UserError if any of `values` is not above 0 or not finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name}={value}: must be above 0")


def weakness(rule: Any, updates: int) -> str | None:
    """Say in one line that a rule cannot withstand its `f` among this many updates; None if it can or has no `f`."""
    found = dict[int, str]()  # by the number of updates it needs
    while rule is not None:
        if (wanted := getattr(rule, "f", None)) and (most := max(0, rule.withstands(updates))) < wanted:
            needed = next(n for n in itertools.count(updates) if rule.withstands(n) >= wanted)
            withstands = f"{type(rule).__name__} of {updates} updates withstands f={most} adversaries, not {wanted}"
            found.setdefault(needed, f"{withstands}: that takes {needed} updates")
        rule = getattr(rule, "then", None)  # the rule applied after this one
    return found[max(found)] if found else None


def withstood(f: int, most: int) -> int:
    """Return `f`, limited to 0 to `most`."""
    return max(0, min(f, most))


def trimmed(updates: Tensor, f: int) -> Tensor:
    """Return the coordinate-wise mean without the `f` largest and the `f` smallest values."""

    def mean(block: Tensor) -> Tensor:
        kept = ordered(block)[f : len(block) - f].contiguous()
        return kept.double().mean(dim=0).to(block.dtype)

    return by_columns(mean, updates)
