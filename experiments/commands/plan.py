"""The cells of the requested matrix, each with its own config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError
from fedshare.experiments.commands.cell import Cell
from fedshare.experiments.config import build, checks, compose
from fedshare.experiments.config.application import App
from fedshare.experiments.config.overrides import parse
from fedshare.experiments.config.schema import IDLE, SINCE, Matrix
from fedshare.report.units import human_seconds
from fedshare.simulation import choice

AXES = {"attacks": "attack", "defences": "strategy", "partitions": "partition"}  # and the config group of each


def wanted(app: App, name: str, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """Return the resolved matrix, each axis by name with lists of overrides; and its folder."""
    parsed = parse(overrides, app)
    own, axes, common = list[str](), dict[str, Any](), list[str]()
    for override in parsed:
        key, line = str(override.key_or_group), str(override.input_line)
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else None
        if key.split(".")[0].split("/")[0] not in (*Matrix.__dataclass_fields__, "hydra"):
            common.append(line)
        elif key in AXES and not override.is_delete():
            axes[key] = values or override.value()
        else:
            one = key == "seeds" and not values and isinstance(override.value(), int)
            own.append(f"{key}=[{','.join(values or [str(override.value())])}]" if values or one else line)
    if "attacks" not in compose.resolved([], name, app):
        raise UserError(f"--config-name {name}: is no matrix: its defaults must begin with matrices")
    config = compose.resolved(own, name, app)
    if config.name is None:
        data = [line.removeprefix("data=") for line in [*config.base, *common] if line.startswith("data=")]
        own.append(f"name={data[-1] if data else 'matrix'}")
        config = compose.resolved(own, name, app)
    folder = compose.folder(own, name, app)
    if not folder:
        raise UserError("folder: has no value, and cannot do without")
    for axis, group in AXES.items():
        known: Any = OmegaConf.to_container(config[axis])  # without resolving environment variables
        config[axis] = _axis(axis, group, known, axes.get(axis, known))
    config.seeds = list(dict.fromkeys(config.seeds))
    for key in (*AXES, "seeds"):
        if not config[key]:
            raise UserError(f"{key}: there are none")
    config.base = [*_lines(config.base), *common]
    if config.reference is not None and len(config.reference) != 2:
        raise UserError("reference: must be an attack and a defence, or null")
    return config, Path(folder)


def _lines(overrides: Any) -> list[str]:
    """Overrides as written, without resolving environment variables."""
    lines: Any = OmegaConf.to_container(overrides)
    return [str(line) for line in lines]


def _axis(axis: str, group: str, known: dict[str, Any], asked: Any) -> dict[str, list[str]]:
    if isinstance(asked, str | list):
        names = map(str, [asked] if isinstance(asked, str) else asked)
        asked = {name: known.get(name, f"{group}='{name}'") for name in names}
    elif not hasattr(asked, "items"):
        raise UserError(f"{axis}={asked}: must be names, or overrides by name")
    return {
        str(name): line.split() if isinstance(line, str) else [str(part) for part in line or []]
        for name, line in asked.items()
    }


def plan(app: App, config: DictConfig) -> list[Cell]:
    """Return all cells in playing order. Raises UserError that names the first invalid cell."""
    total = len(config.attacks) * len(config.defences) * len(config.partitions)
    if total > 50:
        print(f"checking {total} configs, about {human_seconds(0.13 * total)}", flush=True)
    cells, seen, built = list[Cell](), set[str](), set[str]()
    for partition, shared in config.partitions.items():
        for attack, lies in config.attacks.items():
            for defence, strategy in config.defences.items():
                overrides = [line for part in (config.base, shared, lies, strategy) for line in _lines(part)]
                try:
                    if any(override.split("=")[0].lstrip("+~") == "seed" for override in overrides):
                        raise UserError("seed: is not for a cell; say seeds=[0,1]")
                    configs = compose.seeded(["evaluate_every=${rounds}", *overrides], config.seeds, app)
                    _check(configs[0], seen, built)
                except UserError as error:
                    raise UserError(f"{error} (cell {attack} / {defence} / {partition})") from error
                for seed, whole in zip(config.seeds, configs, strict=True):
                    plain = {str(key): value for key, value in OmegaConf.to_container(whole).items()}  # type: ignore[union-attr]
                    if plain["engine"] == choice.AUTO:
                        plain["engine"] = "plain"  # a cell is a small run
                    lean = {k: v for k, v in plain.items() if k not in IDLE and (k not in SINCE or v != SINCE[k])}
                    cells.append(Cell(attack, defence, partition, seed, lean))
    return sorted(cells, key=lambda cell: list(config.seeds).index(cell.seed))  # all cells of the first seed come first


def _check(config: DictConfig, seen: set[str], built: set[str]) -> None:
    """`seen` and `built` hold what was checked for other cells, and grow."""
    if not config.evaluate_every:
        raise UserError("evaluate_every=0: a matrix needs the test after the last round")
    checks.check(config, seen)
    rest = OmegaConf.to_yaml(
        OmegaConf.masked_copy(config, [k for k in map(str, config) if k not in ("strategy", *IDLE)])
    )
    if rest not in built:
        build.population_of(config)  # also checks the attack and the model against the data
        built.add(rest)
