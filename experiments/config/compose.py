"""From overrides to resolved configs. What is wrong in them is said in one line, before anything is created."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedshare.errors import UserError, first_line
from fedshare.experiments.config import environment, words
from fedshare.experiments.config.own import importable
from fedshare.experiments.config.schema import Root, check_ranges, register

App: TypeAlias = Hydra  # hydra's application, which stops here
CONF = Path(__file__).parents[1] / "conf"
PLUGINS = {  # options that a plugin of hydra's adds -> the extra that brings it
    ("hydra/launcher", "joblib"): "joblib",
    ("hydra/launcher", "submitit_local"): "submitit",
    ("hydra/launcher", "submitit_slurm"): "submitit",
    ("hydra/sweeper", "optuna"): "optuna",
}


def hydra(directory: str | None = None) -> Hydra:
    """hydra on our configs, and on those in `directory`, whose modules can be imported from now on."""
    version.setbase("1.3")
    register()
    OmegaConf.register_new_resolver("by", _by, replace=True)
    path = create_config_search_path(str(CONF.absolute()))
    importable(directory)
    if directory is not None:
        path.prepend("command-line", f"file://{Path(directory).absolute()}", SearchPathQuery(provider="schema"))
    return Hydra(task_name="run", config_loader=ConfigLoaderImpl(path))


def _by(choice: str, values: DictConfig) -> Any:
    """``${by:CHOICE,{a: 1, b: 2}}``: a value that goes with an option of another group."""
    if choice not in values:
        raise ValueError(f"no value is known for {choice}, only for {', '.join(map(str, values))}: give one")
    return values[choice]


def resolved(overrides: Sequence[str], name: str = "config", app: Hydra | None = None) -> DictConfig:
    """The config that one job would get, without hydra's own part. Raises UserError."""
    whole = _composed(app or hydra(), name, overrides, RunMode.RUN)
    with _current(whole):
        return settle(whole)


def seeded(overrides: Sequence[str], seeds: Sequence[int], app: Hydra | None = None) -> list[DictConfig]:
    """The config that a run would get with each of the seeds: hydra, which takes long, composes it once."""
    whole = _composed(app or hydra(), "config", overrides, RunMode.RUN)
    configs = []
    with _current(whole):
        for seed in seeds:
            whole.seed = seed
            configs.append(settle(whole))
    return configs


@contextmanager
def _current(whole: DictConfig) -> Iterator[None]:
    """Inside, what refers to hydra's own part finds that of `whole`."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def folder(overrides: Sequence[str], name: str = "config", app: Hydra | None = None) -> str | None:
    """The folder that the overrides ask for."""
    whole = _composed(app or hydra(), name, overrides, RunMode.RUN)
    return None if OmegaConf.is_missing(whole, "folder") else str(whole.folder)


def settle(whole: DictConfig) -> DictConfig:
    """What makes a run what it is, without hydra's own part and the folder.

    Every interpolation is filled in, but for texts of the environment: those are read when something is made of them.
    """
    root = OmegaConf.get_type(whole)  # which of them is the entry's choice
    keys = [field.name for field in fields(root if is_dataclass(root) else Root)]
    for key in map(str, whole):
        if key not in (*keys, "hydra"):
            raise UserError(f"{key}: {_no_such('key', key, keys)}")
    keys.remove("folder")
    config = OmegaConf.create(environment.kept(whole, lambda one: {key: _filled(one, key) for key in keys}))
    check_ranges(config)
    return config


def _filled(whole: DictConfig, key: str) -> Any:
    try:
        return _plain(whole, key)
    except OmegaConfBaseException as error:
        raise UserError(_unfit(whole, key, error) or f"{error.full_key or key}: {first_line(error)}") from error


def _unfit(whole: DictConfig, group: str, error: Exception) -> str | None:
    """One line where an option of `group` asks another option for a key that it has not, with what fits that."""
    missing = re.search(r"Interpolation key '(\w+)\.(\w+)' not found", str(error))
    choices = OmegaConf.select(whole, "hydra.runtime.choices") or {}
    if not missing or not {group, missing[1]} <= choices.keys():
        return None
    source, key = missing.groups()
    fitting = [
        file.stem
        for file in sorted((CONF / group).glob("*.yaml"))
        if all(asked in whole[source] for asked in re.findall(rf"\$\{{{source}\.(\w+)\}}", file.read_text()))
    ]
    asks = f"{group}={choices[group]}: asks for {source}.{key}, which {source}={choices[source]} has not"
    return f"{asks}; what fits: {group}={','.join(fitting)}"


def _plain(whole: DictConfig, key: str) -> Any:
    if key not in whole:
        raise UserError(f"{key}: has no value, and cannot do without")
    value = whole[key]  # resolved in the whole, where ${hydra:...} and its sisters are found
    if not OmegaConf.is_config(value):
        return value
    return words.numbers(OmegaConf.to_container(value, resolve=True, throw_on_missing=True))


def jobs(overrides: Sequence[str], name: str = "config", app: Hydra | None = None) -> list[list[str]]:
    """The overrides of each job of a sweep, as hydra's own sweeper will run them.

    Another sweeper chooses values as it goes: then the one job stands for what is the same in all of them.
    """
    app = app or hydra()
    settings = _composed(app, name, overrides, RunMode.MULTIRUN).hydra
    params = [f"{key}={value}" for key, value in (settings.sweeper.get("params") or {}).items()]
    parsed = parse([*params, *settings.overrides.task], app)
    if settings.sweeper._target_ != BasicSweeperConf._target_:
        parsed = [override for override in parsed if not override.is_sweep_override()]
    try:
        batch, *_ = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise UserError(first_line(error)) from error
    if not batch:
        raise UserError("the sweep is empty: one of its globs or ranges holds nothing")
    return [[*settings.overrides.hydra, *job] for job in batch]


def selects(overrides: Sequence[str], name: str, app: Hydra) -> list[str]:
    """Whether a sweep's sweeper chooses by what its jobs give: each wanted direction; none where it does not."""
    sweeper = _composed(app, name, overrides, RunMode.MULTIRUN).hydra.sweeper
    if sweeper._target_ == BasicSweeperConf._target_:
        return []
    directions = sweeper.get("direction")
    return [
        str(part).rpartition(".")[2] for part in ([directions] if isinstance(directions, str) else directions or [""])
    ]


def _composed(app: Hydra, name: str, overrides: Sequence[str], mode: RunMode) -> DictConfig:
    parsed = parse(overrides, app)
    try:
        return app.compose_config(name, list(overrides), mode, from_shell=False)
    except Exception as error:  # hydra and OmegaConf raise many a type
        raise UserError(_explain(app, name, parsed, mode) or first_line(error)) from error


def parse(overrides: Sequence[str], app: Hydra) -> list[Override]:
    """Each override in its parts. Raises UserError for one that is none."""
    try:
        parsed: list[Override] = OverridesParser.create(app.config_loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        if "=" not in error.override:
            raise UserError(f"{error.override}: is not KEY=VALUE") from error
        reason = str(error).removeprefix(f"Error parsing override '{error.override}'").strip()
        reason = reason.splitlines()[0].split(" expecting ")[0].replace("'<EOF>'", "at its end")
        raise UserError(f"{error.override}: cannot be read ({reason}); quote what is special") from error
    for override in parsed:
        if not override.key_or_group:
            raise UserError(f"{override.input_line}: is not KEY=VALUE")
    return parsed


def _explain(app: Hydra, name: str, parsed: list[Override], mode: RunMode) -> str | None:
    """One line for the first override that does not fit those before it: groups come first, for they bring the keys."""
    groups = app.list_all_config_groups()
    parsed = sorted(parsed, key=lambda o: (not o.is_hydra_override(), o.key_or_group not in groups))
    lines = [str(override.input_line) for override in parsed]
    for count in range(len(lines) + 1):
        try:
            base = app.compose_config(name, lines[:count], mode, from_shell=False)
        except Exception as fault:
            if not count:
                return None  # the config itself is wrong
            override = parsed[count - 1]
            if override.is_sweep_override() and mode is RunMode.RUN:
                return f"{override.input_line}: several values make a sweep: add -m"
            options = app.config_loader.get_group_options(
                override.key_or_group, config_name=name, overrides=lines[: count - 1]
            )
            return _blame(override, options, groups, base, fault)
    return None


def _blame(override: Override, options: list[str], groups: Sequence[str], base: DictConfig, fault: Exception) -> str:
    key, line = override.key_or_group, override.input_line
    whole = isinstance(override.value(), dict)  # what takes the place of an option
    if options and not override.is_delete() and not whole and override.value() not in options:
        if extra := PLUGINS.get((key, str(override.value()))):
            return f"{line}: is not installed: pip install 'fedshare[{extra}]'"
        return f"{line}: {_no_such(key, str(override.value()), options)}"
    if "/" in key and not options:
        return f"{line}: {_no_such('group', key, groups)}"
    if not override.is_add() and not override.is_force_add():
        for inner in (key, *(f"{key}.{part}" for part in _inner(override.value()))):
            if wrong := _unknown(base, inner):
                return wrong if inner == key else f"{wrong}; +{key}=... adds what is not there"
    reason = first_line(fault.__cause__ or fault)
    return f"{line}: {reason[:1].lower()}{reason[1:]}"


def _inner(value: Any, path: str = "") -> Iterator[str]:
    """The keys, with dots, that an override whose value is a dict sets."""
    for name, part in value.items() if isinstance(value, dict) else ():
        here = f"{path}.{name}" if path else str(name)
        yield here
        yield from _inner(part, here)


def _unknown(config: DictConfig, key: str) -> str | None:
    node, path = config, ""
    for part in key.split("."):
        if node is None or (isinstance(node, Node) and node._is_none()):
            return f"{key}: {path} is null; +{key}=... gives it keys of its own"
        if not isinstance(node, DictConfig):
            return f"{key}: {path} has no keys of its own"
        if part not in node:
            allowed = [str(name) for name in node if name not in ("hydra", "_target_", "_partial_")]
            inner = _elsewhere(node, part, path) or _elsewhere(config, part)
            return f"{key}: {_no_such('key', part, allowed, f' in {path}' if path else '', inner)}"
        path = f"{path}.{part}" if path else part
        node = node._get_node(part)  # type: ignore[assignment]  # not node[part]: an interpolation need not resolve
    return None


def _elsewhere(node: DictConfig, word: str, path: str = "") -> list[str]:
    """The keys of that name which lie deeper: the least deep first, and of those what takes its value from another."""
    return [key for _, _, key in sorted(_places(node, word, path))]


def _places(node: DictConfig, word: str, path: str) -> list[tuple[int, bool, str]]:
    """How deep each is, whether its value is its own, and the key."""
    found: list[tuple[int, bool, str]] = []
    for name in map(str, node):
        here, inner = f"{path}.{name}" if path else name, node._get_node(name)
        if name == word and path:
            found.append((here.count("."), inner is None or not inner._is_interpolation(), here))
        elif isinstance(inner, DictConfig) and here != "hydra" and not inner._is_interpolation():
            found += _places(inner, word, here)
    return found


def _no_such(kind: str, word: str, allowed: Sequence[str], where: str = "", better: Sequence[str] = ()) -> str:
    close = better or difflib.get_close_matches(word, allowed, 1)
    hint = f" (did you mean {' or '.join(close[:3])}?)" if close else ""
    return f"no such {kind}{hint}; allowed{where}: {', '.join(allowed) or 'none'}"
