"""From hydra's composition to a resolved config, with interpolations filled in."""

import re
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedshare.errors import UserError, first_line
from fedshare.experiments.config import environment, words
from fedshare.experiments.config.application import CONF
from fedshare.experiments.config.near import no_such
from fedshare.experiments.config.schema import Root, check_ranges


def settle(whole: DictConfig) -> DictConfig:
    """Return the run's own config, without hydra's part and the folder.

    All interpolations are resolved, except those of text from the environment, which are resolved at instantiation.
    """
    chosen = OmegaConf.get_type(whole)  # which of them the entry point selects
    root = chosen if is_dataclass(chosen) else Root
    keys = [field.name for field in fields(root)]
    for key in map(str, whole):
        if key not in (*keys, "hydra"):
            raise UserError(f"{key}: {no_such('key', key, keys)}")
    keys.remove("folder")
    config = OmegaConf.create(environment.kept(whole, lambda one: {key: _filled(one, key) for key in keys}))
    check_ranges(config, root)
    return config


def _filled(whole: DictConfig, key: str) -> Any:
    try:
        return _plain(whole, key)
    except OmegaConfBaseException as error:
        raise UserError(_unfit(whole, key, error) or f"{error.full_key or key}: {first_line(error)}") from error


def _unfit(whole: DictConfig, group: str, error: Exception) -> str | None:
    """Explain in one line an option of `group` that needs a key which another option lacks, and what fits it."""
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
    value = whole[key]  # resolved in the whole, because ${hydra:...} needs it
    if not OmegaConf.is_config(value):
        return value
    return words.numbers(OmegaConf.to_container(value, resolve=True, throw_on_missing=True))
