"""Environment variables in configs: text from one may be secret, so `${oc.env:NAME}` is stored unresolved.

Numbers are not secret: they decide what a run computes, and are stored as they were when the run began.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import Container, DictConfig, Node, OmegaConf, flag_override
from omegaconf.resolvers import oc

Reader = Callable[[DictConfig], dict[str, Any]]  # from a config to its values by key, all resolved

_OPEN, _CLOSE = "\ue000", "\ue001"  # placeholders for the brackets of unresolved interpolations; never in a config


def kept(whole: DictConfig, read: Reader) -> dict[str, Any]:
    """Return what `read` finds in `whole`, with texts from the environment as their interpolations."""
    asked = list[str]()

    def env(name: str, *default: Any) -> Any:
        asked.append(name)
        return oc.env(name, *default)

    with _resolvers(env, oc.decode):
        plain = read(whole)
    if not asked:
        return plain
    concrete = copy.deepcopy(whole)
    with flag_override(concrete, ["readonly", "struct"], [False, False]):
        for key, value in plain.items():
            if isinstance(value, bool | int | float):  # references to it need a number
                concrete[key] = value
    with _resolvers(_sealed_env, _sealed_decode):
        found: dict[str, Any] = _merged(plain, read(concrete))
    return found


def _merged(plain: Any, sealed: Any) -> Any:
    if isinstance(plain, dict) and isinstance(sealed, dict):
        return {key: _merged(value, sealed[key]) for key, value in plain.items()}
    if isinstance(plain, list) and isinstance(sealed, list):
        return [_merged(*both) for both in zip(plain, sealed, strict=True)]
    if isinstance(sealed, str) and _OPEN in sealed and isinstance(plain, str | list | dict):
        return sealed.replace(_OPEN, "${").replace(_CLOSE, "}")
    return plain


@contextmanager
def _resolvers(env: Callable[..., Any], decode: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, `env` and `decode` replace ``oc.env`` and ``oc.decode``."""
    try:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)
        OmegaConf.register_new_resolver("oc.decode", decode, replace=True)
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        OmegaConf.register_new_resolver("oc.decode", oc.decode, replace=True)


def _sealed_env(name: str, *default: Any) -> str:
    return f"{_OPEN}oc.env:{','.join(map(_quoted, (name, *default)))}{_CLOSE}"


def _sealed_decode(text: str | None, _parent_: Container, _node_: Node) -> Any:
    sealed = isinstance(text, str) and _OPEN in text
    return f"{_OPEN}oc.decode:{text}{_CLOSE}" if sealed else oc.decode(text, _parent_, _node_)


def _quoted(value: Any) -> str:
    """Format an argument of an interpolation."""
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value)
    if re.fullmatch(r"\w+", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def unfilled(node: Any, path: str = "") -> tuple[str, str] | None:
    """Return the first text with an unresolved interpolation in `node`, plain values of a config, after its key."""
    if isinstance(node, str):
        return (path, node) if "${" in node else None
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(node, dict):
        items = ((f"{path}.{key}" if path else str(key), item) for key, item in node.items())
    elif isinstance(node, list):
        items = ((f"{path}[{position}]", item) for position, item in enumerate(node))
    return next((found for here, item in items if (found := unfilled(item, here))), None)
