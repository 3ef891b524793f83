"""From a config's `_target_` nodes to objects; errors name the key and what is allowed."""

import inspect
import logging
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedshare.errors import UserError, first_line
from fedshare.machine.extras import missing, root_cause

logging.getLogger("hydra").addHandler(logging.NullHandler())  # it would print what we report in one line
_SPECIAL = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_PLAIN = (str, bool, int, float, type(None))


def make(node: Any, path: str, kind: type[Any] = object) -> Any:
    """Make the object described by `node`, at `path` in the config, and check that it is of `kind`."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{path}: must say by its _target_ what to make")
    try:
        check(node, path)
        made = instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{path}: {_fault(error.__cause__ or error)}") from error
    except OmegaConfBaseException as error:  # such as a missing environment variable
        raise UserError(f"{error.full_key or path}: {first_line(error)}") from error
    if not isinstance(made, kind):
        raise UserError(f"{path}._target_={node['_target_']}: gives a {type(made).__name__}, not a {kind.__name__}")
    return made


def check(node: Any, path: str) -> None:
    """Raise UserError if a key is not an argument of its target, or a value not of the argument's type."""
    if isinstance(node, ListConfig):
        for position, item in enumerate(node):
            check(item, f"{path}[{position}]")
    if not isinstance(node, DictConfig):
        return
    if node.get("_recursive_", True):  # otherwise the target makes and checks its parts itself
        for key, item in node.items():
            check(item, f"{path}.{key!s}")
    if "_target_" not in node:
        return
    target = located(node["_target_"], path)
    try:
        arguments = inspect.signature(target).parameters
    except ValueError:
        return  # written in C: it checks its arguments itself
    _check_names(node, path, arguments)
    expected = hints(target)
    for key, value in node.items():
        if key in arguments and key in expected and not fits(value, expected[key]):
            raise UserError(f"{path}.{key}={shown(value)}: must be {describe(expected[key])}")


def located(name: str, path: str) -> Any:
    """Return the class or function that the `_target_` at `path` names. Raises UserError if there is none."""
    try:
        target: Any = get_object(name)
    except (Exception, SystemExit) as error:
        why = missing(error) or f"cannot be imported: {root_cause(error)}"
        raise UserError(f"{path}._target_={name}: {why}") from error
    if not callable(target):
        raise UserError(f"{path}._target_={name}: is a {type(target).__name__}, not a class or a function")
    return target


def _fault(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return root_cause(error)
    plain = isinstance(error, UserError | TypeError | ValueError)
    return first_line(error) if plain else f"{type(error).__name__}: {first_line(error)}"


def _check_names(node: DictConfig, path: str, arguments: typing.Mapping[str, inspect.Parameter]) -> None:
    kinds = [argument.kind for argument in arguments.values()]
    given = {str(key) for key in node} - _SPECIAL
    if inspect.Parameter.VAR_KEYWORD not in kinds and (unknown := sorted(given - set(arguments))):
        raise UserError(f"{path}.{unknown[0]}: no such key; allowed: {', '.join(arguments)}")
    starred = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    required = {n for n, a in arguments.items() if a.default is a.empty and a.kind not in starred}
    if not node.get("_partial_") and "_args_" not in node and (lacking := sorted(required - given)):
        raise UserError(f"{path}: lacks {', '.join(lacking)}")


def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the known types of a target's arguments."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # a third-party module's annotations may not resolve: then values are unchecked
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a config's value fits the type `hint`; unknown types accept any."""
    if isinstance(value, DictConfig) or hint is Any or hint is inspect.Parameter.empty:
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, member) for member in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(value, ListConfig):
        items = [member for member in typing.get_args(hint) if member is not Ellipsis]
        listed = origin in (list, tuple) or (inspect.isclass(origin) and issubclass(origin, Iterable))
        return hint in (list, tuple) or (listed and all(fits(item, items[0]) for item in value if items))
    if hint in _PLAIN or hint is None:
        if hint in (int, float) and isinstance(value, bool):
            return False
        return isinstance(value, (int, float) if hint is float else hint or type(None))
    if inspect.isclass(origin):
        return isinstance(value, origin) and not isinstance(value, str)  # a str is a Sequence, but not meant as one
    return not inspect.isclass(hint) or isinstance(value, hint)


def describe(hint: Any) -> str:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in members)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, members))}"
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        inner = typing.get_origin(members[0]) if members else None
        if inner in (list, tuple):
            return "a list of lists"
        return f"a list of {members[0].__name__}" if members and inspect.isclass(members[0]) else "a list"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def shown(value: Any) -> str:
    """Format a value as in a config."""
    return str(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else "null" if value is None else str(value)
