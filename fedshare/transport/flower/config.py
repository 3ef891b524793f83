"""Run and node configs, as Flower's own commands take them: flat, and of plain values."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import UserConfig

from fedshare.errors import UserError, first_line

_PAIR = re.compile(r"""([^\s=]+)\s*=\s*("[^"]*"|'[^']*'|\S+)""")
_PLAIN = (bool, int, float, str)
_ALLOWED = "bool, int, float, str, and tables of those"
_OWN = ("partition-id", "num-partitions")  # what each node is told of itself


def run_config(given: Sequence[str], default: UserConfig) -> UserConfig:
    """An app's config with what was given for it. As in Flower, a value may be of another type than the default."""
    config = read_config(given, "--run-config")
    if unknown := sorted(config.keys() - default.keys()):
        allowed = ", ".join(sorted(default)) or "none"
        raise UserError(f"--run-config {unknown[0]}: no such key in the app's config; allowed: {allowed}")
    return {**default, **config}


def node_config(given: Sequence[str]) -> UserConfig:
    """What nodes are told beside who they are."""
    config = read_config(given, "--node-config")
    if own := sorted(config.keys() & set(_OWN)):
        raise UserError(f"--node-config {own[0]}: each node is told its own; allowed: any other key")
    return config


def read_config(given: Sequence[str], flag: str) -> UserConfig:
    """``a=1 b="x y"``, several times, where the last counts, or the path of one TOML file. `flag` brought it."""
    files = [text for text in given if text.endswith(".toml")]
    if files and len(given) > 1:
        raise UserError(f"{flag} {files[0]}: one TOML file, or pairs, not both")
    if files:
        return _file(Path(files[0]).expanduser(), flag)
    config: UserConfig = {}
    for text in given:
        config |= _pairs(text, flag)
    return config


def flat(nested: Any, where: str, prefix: str = "") -> UserConfig:
    """Nested tables as keys with dots. Raises UserError, which begins with `where`, at a value that is not plain."""
    if not isinstance(nested, dict):
        raise UserError(f"{where}: is a {type(nested).__name__}, not a table")
    config: UserConfig = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            config |= flat(value, where, f"{name}.")
        elif not isinstance(value, _PLAIN):
            raise UserError(f"{where} {name}: is a {type(value).__name__}; allowed: {_ALLOWED}")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{where} {name}: is an int of more than 64 bits")
        else:
            config[name] = value
    return config


def _file(path: Path, flag: str) -> UserConfig:
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file")
    try:
        return flat(tomllib.loads(path.read_text()), f"{flag} {path}:")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: {first_line(error)}") from None


def _pairs(text: str, flag: str) -> UserConfig:
    if rest := _PAIR.sub("", text).strip():
        raise UserError(f"{flag} {rest}: is not KEY=VALUE")
    config: UserConfig = {}
    for name, value in _PAIR.findall(text):
        try:
            pair = flat(tomllib.loads(f"{name} = {value}"), flag)
        except tomllib.TOMLDecodeError:
            text = f'{name}="..."'
            raise UserError(f"{flag} {name}={value}: is no value of TOML; allowed: {_ALLOWED}; str: {text}") from None
        if twice := sorted(pair.keys() & config.keys()):
            raise UserError(f"{flag} {twice[0]}: is given twice")
        if not pair:
            raise UserError(f"{flag} {name}={value}: is not KEY=VALUE")
        config |= pair
    return config
