"""Rules of the ByzFL library (https://byzfl.epfl.ch), which has more than this package."""

import importlib
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedshare import seeds
from fedshare.errors import UserError, first_line
from fedshare.machine.extras import importing
from fedshare.rules.rule import withstood
from fedshare.tensors import digest


@dataclass(frozen=True)
class ByzFL:
    """One of the library's aggregators. As in our rules, `f` is capped by what the number of clients allows.

    Random draws (CAF, SMEA, Bucketing) are seeded by the updates themselves.
    """

    name: str  # an aggregator: CAF, MDA, Meamed, MoNNA, SMEA, ...
    options: dict[str, Any] = field(default_factory=dict)  # its arguments
    before: str | None = None  # a pre-aggregator applied first: ARC, Bucketing, Clipping or NNM
    before_options: dict[str, Any] = field(default_factory=dict)  # its arguments

    @property
    def f(self) -> int:
        """The number of adversaries to withstand, the larger of both options."""
        return max(_named(self.options), _named(self.before_options))

    def withstands(self, updates: int) -> int:
        return (updates - 1) // 2

    def __call__(self, updates: Tensor, centre: Tensor) -> tuple[Tensor, None]:
        with seeds.scope("byzfl", digest(updates)):
            try:
                vectors = updates.clone()  # some aggregators modify their input
                if self.before is not None:
                    vectors = made("preaggregators", self.before, self.before_options, len(vectors) - 1)(vectors)
                rule = made("aggregators", self.name, self.options, (len(vectors) - 1) // 2)
                if hasattr(rule, "m"):  # CenteredClipping, whose constructor does not take it
                    rule.m = centre
                return rule(vectors).to(updates.dtype), None
            except (TypeError, ValueError) as error:
                raise UserError(f"byzfl {self.name}: {first_line(error)}") from error


def _named(options: dict[str, Any]) -> int:
    f = options.get("f")
    return f if isinstance(f, int) and f > 0 else 0


def made(module: str, name: str, options: dict[str, Any], most: int) -> Any:
    """Return the library's rule `name`, with its `f` capped at `most`."""
    with importing("byzfl", "rule=byzfl"):
        importlib.import_module("byzfl")
        library = importlib.import_module(f"byzfl.aggregators.{module}")
    rules = {key: value for key, value in vars(library).items() if getattr(value, "__module__", "") == library.__name__}
    if name not in rules:
        raise UserError(f"byzfl has no {name}; allowed: {', '.join(sorted(rules))}")
    capped = {"f": withstood(options["f"], most)} if _named(options) else {}
    return rules[name](**options | capped)
