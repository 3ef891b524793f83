"""What a rule is, and the arithmetic that rules have in common."""

import itertools
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fedshare.errors import UserError
from fedshare.rules.matrix import by_columns


@runtime_checkable
class Rule(Protocol):
    """From everyone's updates to one.

    A rule is the same whatever the order of the clients, but for ties, which the first wins. Its `f`, where it has one,
    is how many adversaries it is to withstand, and its `withstands(n)` how many it can of n; where that is less, it
    withstands as many as it then can, and `weakness` says so.
    """

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, Tensor | None]:
        """The aggregate ``[d]`` of `updates`, ``[clients, d]``, and each one's share in it, where it has such.

        `centre` is the last round's aggregate, at first 0: all that a rule may know of the past.
        """
        ...


def at_least(least: int, **values: int) -> None:
    """Raise UserError where one of `values` is less."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}")


def above_zero(**values: float) -> None:
    """Raise UserError where one of `values` is not above 0, or endless."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name}={value}: must be above 0")


def weakness(rule: Any, updates: int) -> str | None:
    """That a rule cannot withstand its `f` of so many updates, in one line; None where it can, or has none."""
    found = dict[int, str]()  # by how many it takes
    while rule is not None:
        if (wanted := getattr(rule, "f", None)) and (most := max(0, rule.withstands(updates))) < wanted:
            needed = next(n for n in itertools.count(updates) if rule.withstands(n) >= wanted)
            withstands = f"{type(rule).__name__} of {updates} updates withstands f={most} adversaries, not {wanted}"
            found.setdefault(needed, f"{withstands}: that takes {needed} updates")
        rule = getattr(rule, "then", None)  # a rule that comes after this one
    return found[max(found)] if found else None


def withstood(f: int, most: int) -> int:
    """How many adversaries of `f`, where `most` are possible."""
    return max(0, min(f, most))


def trimmed(updates: Tensor, f: int) -> Tensor:
    """The mean of each coordinate, without its `f` largest and its `f` smallest values."""

    def mean(block: Tensor) -> Tensor:
        return block.sort(dim=0).values[f : len(block) - f].double().mean(dim=0).to(block.dtype)

    return by_columns(mean, updates)
