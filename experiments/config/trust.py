"""What a config by someone else may name as code: a server's at a client, or in another user's folder."""

import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fedshare.data.dataset import Dataset
from fedshare.errors import UserError
from fedshare.experiments.config.environment import unfilled
from fedshare.experiments.config.instantiate import describe, hints, located
from fedshare.experiments.config.slots import SLOTS

# Modules that configs may name. Others of fedshare write files, or execute what texts name.
_ROOMS = ("strategies", "models", "data", "peft", "client", "training", "tasks", "attacks", "rules", "peers", "links")
_MODULES = ("experiments.tracking", "forms.compressors", "simulation.cluster")
_OURS = tuple(f"fedshare.{room}" for room in (*_ROOMS, *_MODULES))
# Third-party names used in conf/ and docs/: by package, the required base class.
_THEIRS = {
    "torch.nn": "torch.nn.modules.module.Module",
    "torch.optim": "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "peft": "peft.config.PeftConfig",
    "torchmetrics": "torchmetrics.metric.Metric",
    "flwr_datasets.partitioner": "flwr_datasets.partitioner.partitioner.Partitioner",
    "torchvision.datasets": "torchvision.datasets.folder.ImageFolder",
    "torchvision.transforms": "builtins.object",
}
_FUNCTIONS = "torch.nn.functional"
_ALLOWED = (
    "fedshare's strategies, models, data, ..., torch.nn, torch.optim, peft, torchmetrics, flwr_datasets.partitioner, "
    "torchvision.datasets.ImageFolder, torchvision.transforms"
)
_GETTERS = {f"hydra.utils.{name}" for name in ("get_class", "get_method", "get_static_method", "get_object")}
_PRETRAINING: dict[str, Any] = {"optimizer": torch.optim.Optimizer, "augment": Callable}
_SLOTS = SLOTS | {"partition.sources[]": Dataset} | _PRETRAINING
_PLAIN = (str, bool, int, float, bytes, type(None))


@dataclass(frozen=True)
class Trust:
    """What a config by someone else may name in addition to the allowed packages."""

    packages: frozenset[str] = frozenset()  # and everything in them
    names: frozenset[str] = frozenset()  # target names, as written

    @classmethod
    def of(cls, packages: Iterable[str], directory: str | None = None, own: DictConfig | None = None) -> "Trust":
        """Collect what a user trusts by `--trust`, `--config-dir` and a config of their `own`. Raises UserError."""
        packages = list(packages)
        for package in packages:
            if not all(part.isidentifier() for part in package.split(".")):
                raise UserError(f"--trust {package}: is not the name of a package, such as mylab or mylab.models")
        beside = _modules(Path(directory).resolve()) if directory else ()
        names = _named(OmegaConf.to_container(own)) if own is not None else ()
        return cls(frozenset([*packages, *beside]), frozenset(names))


def check(config: DictConfig, trust: Trust, whose: str) -> None:
    """Raise UserError if `config`, by someone else, names what it may not. Nothing is called."""
    check_filled(config, whose)
    try:
        _check(OmegaConf.to_container(config), "", Any, trust)
    except UserError as error:
        raise UserError(f"{whose}: {error}") from error


def check_filled(config: DictConfig, whose: str) -> None:
    """Raise UserError if `config`, by someone else, contains interpolations, which would read this environment."""
    if found := unfilled(OmegaConf.to_container(config)):
        raise UserError(f"{whose}: {found[0]}={found[1]}: only who wrote a config fills in what it refers to")


def _check(node: Any, path: str, hint: Any, trust: Trust) -> None:
    """Check a node; `hint` is the type expected at `path`. Includes `_args_` and non-recursive parts."""
    hint = _SLOTS.get(re.sub(r"\[\d+\]", "[]", path), hint)
    if isinstance(node, list):
        for position, item in enumerate(node):
            _check(item, f"{path}[{position}]", _member(hint), trust)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        known = hints(_admitted(node, path, hint, trust))
        asked = {key: known.get(key, Any) for key in node}
    else:
        asked = dict.fromkeys(node, _member(hint))
    for key, item in node.items():
        _check(item, f"{path}.{key}" if path else str(key), asked[key], trust)


def _admitted(node: dict[Any, Any], path: str, hint: Any, trust: Trust) -> Any:
    """Return the class or function that a node names. Raises UserError if it may not."""
    name = _name(node)
    if name is None:
        raise UserError(f"{path}._target_: must be the name of a class or a function")
    if name in trust.names:
        return located(name, path)
    places = (*_OURS, *_THEIRS, *trust.packages)
    if not _within(name, places) or any(part.startswith("__") for part in name.split(".")):
        raise _refusal(path, name, "may not be named here", name)  # without importing it
    found = located(name, path)
    home = found.__module__ if isinstance(found, type | types.FunctionType) else None
    kinds, given = _kinds(hint), _gives(found)
    if home is None and not _within(str(getattr(found, "__module__", "")), trust.packages):
        raise _refusal(path, name, f"is a {type(found).__name__}", str(getattr(found, "__module__", "")))
    if home is not None and not _within(home, places):
        raise _refusal(path, name, f"is {home}.{found.__qualname__}, which may not be named here", home)
    if _within(str(home), trust.packages):
        fits = given is None or _fits(given, kinds)
    elif home == _FUNCTIONS:
        fits = kinds is None
    elif _within(str(home), _OURS):
        fits = given is not None and kinds is not None and _fits(given, kinds)
    else:
        bases = {f"{base.__module__}.{base.__qualname__}" for base in getattr(found, "__mro__", ())}
        fits = any(_within(str(home), (at,)) and base in bases for at, base in _THEIRS.items()) and _fits(given, kinds)
    if not fits:
        wanted = f"; must be {describe(hint)}" if kinds else ""
        raise UserError(f"{path}._target_={name}: is not for this key{wanted}")
    return found


def _refusal(path: str, name: str, why: str, home: str) -> UserError:
    package = home.partition(".")[0]
    flag = f"; --trust {package} allows what is in {package}" if package else ""
    return UserError(f"{path}._target_={name}: {why}; allowed: {_ALLOWED}{flag}")


def _name(node: dict[Any, Any]) -> str | None:
    """The name in a node; for hydra's getters, the name they would get."""
    name = node["_target_"]
    if isinstance(name, str) and name in _GETTERS:
        name = node.get("path", next(iter(node.get("_args_") or ()), None))
    return name if isinstance(name, str) else None


def _named(node: Any) -> Iterator[str]:
    """Yield all names in a config's nodes."""
    if isinstance(node, dict):
        if "_target_" in node and (name := _name(node)):
            yield name
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from _named(item)


def _modules(directory: Path) -> Iterator[str]:
    """Yield the modules imported from `directory`, except those found elsewhere first."""
    for entry in directory.iterdir():
        name = entry.stem if entry.suffix == ".py" else entry.name
        if not name.isidentifier() or name == "__main__":
            continue
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or []) if spec else []
        if places and all(directory in Path(place).resolve().parents for place in places):
            yield name


def _within(name: str, places: Iterable[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _gives(found: Any) -> type | None:
    """The type that a class or function returns, if known."""
    made = found if not inspect.isclass(found) else found.__new__ if "__new__" in vars(found) else None
    hint = hints(made).get("return") if isinstance(made, types.FunctionType) else None
    return hint if inspect.isclass(hint) else found if inspect.isclass(found) else None


def _kinds(hint: Any) -> tuple[type, ...] | None:
    """Return the types that may be made for `hint`; None: any."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kinds(member) for member in members]
        return None if None in kinds else tuple(kind for some in kinds if some for kind in some)
    if origin is Callable:
        return _kinds(members[-1]) if members else None  # the result of calling it later
    if hint in _PLAIN or origin is typing.Literal:
        return ()
    kind = origin or hint
    return (kind,) if inspect.isclass(kind) and kind not in (object, Any) else None


def _fits(given: type | None, kinds: tuple[type, ...] | None) -> bool:
    return kinds is None or (given is not None and any(_is(given, kind) for kind in kinds))


def _is(given: type, kind: type) -> bool:
    try:
        return issubclass(given, kind)
    except TypeError:  # a protocol with fields: compare its methods
        methods = [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]
        return bool(methods) and all(callable(getattr(given, name, None)) for name in methods)


def _member(hint: Any) -> Any:
    """The element type of a container."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next((member for member in typing.get_args(hint) if typing.get_args(member)), Any)
    held = [member for member in typing.get_args(hint) if member is not Ellipsis]
    return held[-1] if held and typing.get_origin(hint) is not Callable else Any
