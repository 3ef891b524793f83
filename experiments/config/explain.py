"""Why an override does not fit, in one line."""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from fedshare.errors import first_line
from fedshare.experiments.config.application import App
from fedshare.experiments.config.near import no_such, unknown

PLUGINS = {  # options added by hydra plugins -> the extra that provides them
    ("hydra/launcher", "joblib"): "joblib",
    ("hydra/launcher", "submitit_local"): "submitit",
    ("hydra/launcher", "submitit_slurm"): "submitit",
    ("hydra/sweeper", "optuna"): "optuna",
}


def explain(app: App, name: str, parsed: list[Override], mode: RunMode) -> str | None:
    """Explain the first override that does not fit those before it; groups come first, because they define the keys."""
    groups = app.list_all_config_groups()
    parsed = sorted(parsed, key=lambda o: (not o.is_hydra_override(), o.key_or_group not in groups))
    lines = [str(override.input_line) for override in parsed]
    for count in range(len(lines) + 1):
        try:
            base = app.compose_config(name, lines[:count], mode, from_shell=False)
        except Exception as fault:
            if not count:
                return None  # the config itself is invalid
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
    whole = isinstance(override.value(), dict)  # it replaces a whole option
    if options and not override.is_delete() and not whole and override.value() not in options:
        if extra := PLUGINS.get((key, str(override.value()))):
            return f"{line}: is not installed: pip install 'fedshare[{extra}]'"
        return f"{line}: {no_such(key, str(override.value()), options)}"
    if "/" in key and not options:
        return f"{line}: {no_such('group', key, groups)}"
    if not override.is_add() and not override.is_force_add():
        for inner in (key, *(f"{key}.{part}" for part in _inner(override.value()))):
            if wrong := unknown(base, inner):
                return wrong if inner == key else f"{wrong}; +{key}=... adds what is not there"
    reason = first_line(fault.__cause__ or fault)
    return f"{line}: {reason[:1].lower()}{reason[1:]}"


def _inner(value: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys that an override sets if its value is a dict."""
    for name, part in value.items() if isinstance(value, dict) else ():
        here = f"{path}.{name}" if path else str(name)
        yield here
        yield from _inner(part, here)
