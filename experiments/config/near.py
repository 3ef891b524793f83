"""Keys that a config does not have, in one line, with what is close to them."""

import difflib
from collections.abc import Sequence

from omegaconf import DictConfig, Node


def unknown(config: DictConfig, key: str) -> str | None:
    node, path = config, ""
    for part in key.split("."):
        if node is None or (isinstance(node, Node) and node._is_none()):
            return f"{key}: {path} is null; +{key}=... gives it keys of its own"
        if not isinstance(node, DictConfig):
            return f"{key}: {path} has no keys of its own"
        if part not in node:
            allowed = [str(name) for name in node if name not in ("hydra", "_target_", "_partial_")]
            inner = _elsewhere(node, part, path) or _elsewhere(config, part)
            return f"{key}: {no_such('key', part, allowed, f' in {path}' if path else '', inner)}"
        path = f"{path}.{part}" if path else part
        node = node._get_node(part)  # type: ignore[assignment]  # not node[part]: an interpolation need not resolve
    return None


def _elsewhere(node: DictConfig, word: str, path: str = "") -> list[str]:
    """Return the deeper keys of that name: the shallowest first, among equals those that are interpolations first."""
    return [key for _, _, key in sorted(_places(node, word, path))]


def _places(node: DictConfig, word: str, path: str) -> list[tuple[int, bool, str]]:
    """Return the depth of each, whether its value is its own, and the key."""
    found: list[tuple[int, bool, str]] = []
    for name in map(str, node):
        here, inner = f"{path}.{name}" if path else name, node._get_node(name)
        if name == word and path:
            found.append((here.count("."), inner is None or not inner._is_interpolation(), here))
        elif isinstance(inner, DictConfig) and here != "hydra" and not inner._is_interpolation():
            found += _places(inner, word, here)
    return found


def no_such(kind: str, word: str, allowed: Sequence[str], where: str = "", better: Sequence[str] = ()) -> str:
    close = better or difflib.get_close_matches(word, allowed, 1)
    hint = f" (did you mean {' or '.join(close[:3])}?)" if close else ""
    return f"no such {kind}{hint}; allowed{where}: {', '.join(allowed) or 'none'}"
