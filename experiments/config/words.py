"""Numbers that YAML parses as text: ``inf``, ``nan``, and quoted ones that the command line reads as floats."""

import math
from collections.abc import Callable
from functools import partial
from inspect import Parameter
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object

from fedshare.experiments.config.instantiate import fits, hints


def _unknown() -> Any:
    return Parameter.empty


def numbers(node: Any, ask: Callable[[], Any] = _unknown) -> Any:
    """Return `node`, plain values of a config, with its texts parsed as on the command line unless text is expected.

    `ask` returns the expected type. If unknown, only infinity and NaN are parsed: finite numbers were quoted.
    """
    if isinstance(node, dict):
        return {key: numbers(item, partial(_argument, node, key)) for key, item in node.items()}
    if isinstance(node, list):
        return [numbers(item, partial(_member, ask)) for item in node]
    if not isinstance(node, str) or (number := _float(node)) is None:
        return node
    hint = ask()
    as_text = math.isfinite(number) if hint in (Any, Parameter.empty) else fits(node, hint)
    return node if as_text else number


def _argument(node: dict[Any, Any], key: Any) -> Any:
    """The type of the argument of the node's target, if known; errors are reported elsewhere."""
    try:
        return hints(get_object(node["_target_"])).get(key, Parameter.empty)
    except (Exception, SystemExit):
        return Parameter.empty


def _member(ask: Callable[[], Any]) -> Any:
    """The element type of a list."""
    hint = ask()
    if isinstance(hint, UnionType) or get_origin(hint) is Union:  # such as a list or null
        hint = next((part for part in get_args(hint) if get_args(part)), Parameter.empty)
    return next(iter(get_args(hint)), Parameter.empty)


def _float(text: str) -> float | None:
    """Parse a float by hydra's grammar; None if it is not one."""
    try:
        float(text)
        value = OverridesParser.create().parse_rule(text, "primitive")
    except (ValueError, HydraException):
        return None
    return value if isinstance(value, float) else None
