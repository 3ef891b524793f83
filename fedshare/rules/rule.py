"""What a rule is, and the arithmetic that rules have in common."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from fedshare.errors import UserError
from fedshare.rules.matrix import by_columns


@runtime_checkable
class Rule(Protocol):
    """From everyone's updates to one.

    A rule is the same whatever the order of the clients, but for ties, which the first wins. Its `f`, where it has one,
    is how many adversaries it is to withstand; where there are too few clients for so many, it withstands as many as it
    then can.
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


def withstood(f: int, most: int) -> int:
    """How many adversaries of `f`, where `most` are possible."""
    return max(0, min(f, most))


def trimmed(updates: Tensor, f: int) -> Tensor:
    """The mean of each coordinate, without its `f` largest and its `f` smallest values."""

    def mean(block: Tensor) -> Tensor:
        return block.sort(dim=0).values[f : len(block) - f].double().mean(dim=0).to(block.dtype)

    return by_columns(mean, updates)
