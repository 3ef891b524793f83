"""The metadata of a config key: its allowed values, what depends on it, and who must agree on it."""

import math
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from typing import Any, Protocol, get_args

from omegaconf import MISSING

ALWAYS = object()  # in the place of `About.before`: every version has had the key


class Effect(Enum):
    """What changes in a run when the key changes."""

    RESULTS = "what is computed"
    LENGTH = "which rounds there are, and which of them are tested"
    WAITING = "in a deployment, how long a client is waited for"
    LATENESS = "in a deployment, what is done about clients that are late"
    NOTHING = "names, files and processes, and no result"


class Allowed(Protocol):
    """The values that a key may have. Its `str` completes an error line that ends in "must be"."""

    def __contains__(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Range:
    least: float
    most: float = math.inf
    above: bool = False  # whether `least` itself is excluded
    below: bool = False  # whether `most` itself is excluded

    def __contains__(self, value: Any) -> bool:
        return self.least <= value <= self.most and not (
            (self.above and value == self.least) or (self.below and value == self.most)
        )

    def __str__(self) -> str:
        if not self.above and not self.below and self.most < math.inf:
            return f"from {self.least} to {self.most}"
        least = f"{'above' if self.above else 'at least'} {self.least}"
        return least if self.most == math.inf else f"{least} and {'below' if self.below else 'at most'} {self.most}"


@dataclass(frozen=True)
class Choice:
    values: tuple[str, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return " or ".join(self.values)


@dataclass(frozen=True)
class About:
    """Metadata of one key."""

    allowed: Allowed | None = None  # None: anything of its type
    effect: Effect = Effect.RESULTS
    shared: bool = False  # whether it affects a client's part, and so must be equal on all hosts
    may_change: bool = False  # whether a resumed deployment may change it
    since: tuple[int, int] = (0, 1)  # the first version that has it
    before: Any = ALWAYS  # the value equivalent to the behaviour of older versions without it


_ALL = About()


def key(
    allowed: Allowed | None = None,
    effect: Effect = Effect.RESULTS,
    *,
    default: Any = MISSING,
    shared: bool = False,
    may_change: bool = False,
    since: tuple[int, int] = (0, 1),
    before: Any = ALWAYS,
) -> Any:
    """Return a field of a root with its metadata: see `About`."""
    return field(default=default, metadata={"about": About(allowed, effect, shared, may_change, since, before)})


def about(root: type[Any]) -> Iterator[tuple[Field[Any], About]]:
    """Yield the fields of a root in order, with their metadata."""
    for one in fields(root):
        yield one, one.metadata.get("about", _ALL)


def nullable(one: Field[Any]) -> bool:
    """Whether the field's type includes null."""
    return one.type is Any or type(None) in get_args(one.type)
