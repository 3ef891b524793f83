"""From overrides to a resolved config. What is wrong in them is said in one line, before anything is created."""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedshare.errors import UserError

from .config import check_ranges, register

CONF = Path(__file__).parent / "conf"


def resolved(overrides: Sequence[str], name: str = "config", conf: Path = CONF) -> DictConfig:
    """The config that one job would get, without hydra's own part. Raises UserError."""
    register()
    before = Singleton.get_state()
    try:
        with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            try:
                whole = compose(name, list(overrides), return_hydra_config=True)
            except (HydraException, OmegaConfBaseException) as error:
                raise UserError(_explain(list(overrides), name, error)) from error
            HydraConfig.instance().set_config(whole)
            return settle(whole)
    finally:
        Singleton.set_state(before)


def settle(whole: DictConfig) -> DictConfig:
    """What makes a run what it is: every interpolation filled in, without hydra's own part and the folder."""
    try:
        plain = {key: _plain(whole, str(key)) for key in whole if key not in ("hydra", "folder")}
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from error
    config = OmegaConf.create(plain)
    check_ranges(config)
    return config


def _plain(whole: DictConfig, key: str) -> Any:
    value = whole[key]  # resolved in the whole, where ${hydra:...} and its sisters are found
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def parse(overrides: Sequence[str]) -> list[Override]:
    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise UserError(f"{error.override}: is not KEY=VALUE") from error
    return parsed


def jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep, as hydra's own sweeper would run them."""
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in parse(overrides)
    ]
    return (list(job) for job in itertools.product(*choices))


def _explain(overrides: list[str], name: str, error: Exception) -> str:
    """One line for the override at fault."""
    loader: ConfigLoader = GlobalHydra.instance().config_loader()
    parsed = parse(overrides)
    names = loader.list_groups("")
    groups = [override for override in parsed if override.key_or_group in names]
    for override in groups:
        options = loader.get_group_options(override.key_or_group)
        if not override.is_delete() and (value := override.value()) not in options:
            key = override.key_or_group
            return f"{key}={value}: no such {key}{_like(str(value), options)}; allowed: {', '.join(options)}"
    groups += [override for override in parsed if override.key_or_group.startswith("hydra.")]  # the search path
    try:
        base = compose(name, [str(override.input_line) for override in groups])
    except (HydraException, OmegaConfBaseException):
        return _first_line(error)
    for override in parsed:
        if override in groups or override.is_add() or override.is_force_add():
            continue
        if wrong := _unknown(base, override.key_or_group):
            return wrong
        try:
            compose(name, [*(str(other.input_line) for other in groups), str(override.input_line)])
        except (HydraException, OmegaConfBaseException) as fault:
            reason = _first_line(fault.__cause__ or fault)
            return f"{override.input_line}: {reason[:1].lower()}{reason[1:]}"
    return _first_line(error)


def _unknown(config: DictConfig, key: str) -> str | None:
    node, path = config, ""
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return f"{key}: {path} has no keys of its own"
        if part not in node:
            allowed = [str(name) for name in node if name not in ("hydra", "_target_", "_partial_")]
            where = f" in {path}" if path else ""
            return f"{key}: no such key{_like(part, allowed)}; allowed{where}: {', '.join(allowed)}"
        path = f"{path}.{part}" if path else part
        node = node._get_node(part)  # type: ignore[assignment]  # not node[part]: an interpolation need not resolve
    return None


def _like(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
