"""`fedshare matrix`: attacks by defences by partitions by seeds, each cell a run, in one table and one picture."""

import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import RunHalted, UserError, first_line
from fedshare.experiments.beginnings import check_made, warn
from fedshare.experiments.commands.cell import Cell, Result
from fedshare.experiments.commands.crew import play_all
from fedshare.experiments.config import application, build, checks, compose
from fedshare.experiments.config.application import App
from fedshare.experiments.config.overrides import parse
from fedshare.experiments.config.own import add_config_dir
from fedshare.experiments.config.schema import IDLE, SINCE, Matrix
from fedshare.experiments.options import Parser
from fedshare.experiments.signals import terminable
from fedshare.machine import devices
from fedshare.machine.files import on_disk, sweep, write_atomically, writing
from fedshare.report.cells import Entry, of_the_same_clients, with_fairness
from fedshare.report.matrix import matrix_csv, matrix_markdown
from fedshare.report.matrix_plot import matrix_plot
from fedshare.report.units import decimal, human_seconds
from fedshare.runs import RunFolder

AXES = {"attacks": "attack", "defences": "strategy", "partitions": "partition"}  # and the group that each is about
_HELP = """Run every attack against every defence, on every partition, with every seed.

KEY=VALUE with a key of experiments/conf/matrix.yaml changes the matrix; any other override applies to every cell.
Select an axis by names (of the matrix, or options of the group) or by your own overrides:

  fedshare matrix attacks=none,sign_flip defences=fedavg,rffl partitions=iid seeds=0,1
  fedshare matrix rounds=10 attack.adversaries=3 folder=matrices/three
  fedshare matrix 'defences={gentle: "strategy=rffl strategy.beta=0.1", rffl: "strategy=rffl"}'
  fedshare matrix '~attacks.mimic' '+attacks.far="attack=rescale attack.factor=100"'
  fedshare matrix -cn mine -cd folder

A cell that is already in the folder is not run again, so the same command continues after a stop.
"""


def matrix(arguments: list[str]) -> None:
    parser = Parser(
        prog="fedshare matrix",
        usage="fedshare matrix [FLAG ...] [KEY=VALUE ...]",
        description=_HELP,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as above")
    parser.add_argument("-n", "--dry-run", action="store_true", help="check all cells, print their number, and stop")
    parser.add_argument(
        "-cn", "--config-name", default="matrix", help="a preset, or a root config of your own in --config-dir"
    )
    add_config_dir(parser)
    flags = parser.parse_intermixed_args(arguments)
    app = application.hydra(flags.config_dir)
    config, path = wanted(app, flags.config_name, flags.overrides)
    cells = plan(app, config)
    folder = RunFolder(path)
    if path.is_dir() and any(path.iterdir()) and not (path / "cells").is_dir():
        raise UserError(f"folder={path}: holds something else than a matrix: name another")
    kept, waiting = _kept(path / "cells", cells)
    for result in kept.values() if waiting else ():
        check_made(path, result["fedshare"], "what it holds is still read where no cell is lacking")
    counts = " x ".join(f"{len(config[axis])} {axis}" for axis in (*AXES, "seeds"))
    there = f", {len(cells) - len(waiting)} of them there already" if len(waiting) < len(cells) else ""
    print(f"{config.name}: {counts}, {len(cells)} cells{there}", flush=True)
    if flags.dry_run:
        return
    advice = "the cells before are safe; once it can be written, the same command plays those that are left"
    with on_disk(path, lambda: advice):
        with writing(path):
            (path / "cells").mkdir(parents=True, exist_ok=True)
        failed = _locked(folder, cells, waiting, kept, config)
    if failed:
        raise RunHalted(f"{failed} of {len(cells)} cells failed; the same command plays them again")


def _locked(
    folder: RunFolder, cells: list[Cell], waiting: list[Cell], kept: dict[str, Result], config: DictConfig
) -> int:
    """Play what waits, and write what there is then; how many have given no result."""
    path = folder.path
    with folder.lock():
        sweep(path / "cells")
        write_atomically(folder.config, OmegaConf.to_yaml(config))
        with terminable():
            try:
                failed = _play(path / "cells", waiting, kept, config)
            except KeyboardInterrupt:
                _report(path, cells, kept, config)
                left = len({cell.file for cell in cells} - kept.keys())
                print(f"! stopped; the same command goes on with the {left} cells that are left")
                raise
        print(_report(path, cells, kept, config))
    return failed


def wanted(app: App, name: str, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """The matrix that is asked for, resolved, each axis by name with lists of overrides; and its folder."""
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
        known: Any = OmegaConf.to_container(config[axis])  # texts of the environment are not read
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
    """Overrides as they are written: what they take from the environment is not read."""
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
    """All cells, in the order in which they are played. Raises UserError where one of them is wrong, and says which."""
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
                    lean = {k: v for k, v in plain.items() if k not in IDLE and (k not in SINCE or v != SINCE[k])}
                    cells.append(Cell(attack, defence, partition, seed, lean))
    return sorted(cells, key=lambda cell: list(config.seeds).index(cell.seed))  # the first seed is there first


def _check(config: DictConfig, seen: set[str], built: set[str]) -> None:
    """`seen` and `built` hold what was already looked at, for other cells, and grow."""
    if not config.evaluate_every:
        raise UserError("evaluate_every=0: a matrix needs the test after the last round")
    checks.check(config, seen)
    rest = OmegaConf.to_yaml(
        OmegaConf.masked_copy(config, [k for k in map(str, config) if k not in ("strategy", *IDLE)])
    )
    if rest not in built:
        build.population_of(config)  # the attack suits the data, the model too
        built.add(rest)


def _kept(folder: Path, cells: list[Cell]) -> tuple[dict[str, Result], list[Cell]]:
    """What `folder` holds of the cells, by file, and the cells of which it holds nothing, no two the same."""
    kept, waiting = dict[str, Result](), dict[str, Cell]()
    for cell in cells:
        if cell.file in kept or cell.file in waiting:
            continue
        try:
            found = cell.read(folder)
        except ValueError as error:
            warn(f"{folder / cell.file} is damaged, and {cell} played again: {first_line(error)}")
            found = None
        if found is None:
            waiting[cell.file] = cell
        else:
            kept[cell.file] = found
    return kept, list(waiting.values())


def _play(folder: Path, waiting: list[Cell], kept: dict[str, Result], config: DictConfig) -> int:
    """Play what waits, a line for each; how many have given no result."""
    began, failed, width = time.monotonic(), 0, len(str(len(waiting)))
    workers = devices.cores() if config.workers is None else min(config.workers, 4 * devices.cores())
    with closing(play_all(waiting, workers, config.timeout)) as played:
        for number, (cell, outcome) in enumerate(played, 1):
            if isinstance(outcome, str):
                failed += 1
                print(f"fedshare: {cell}: {outcome}", file=sys.stderr, flush=True)
                continue
            cell.write(folder, outcome)
            kept[cell.file] = outcome
            accuracy = Entry("", "", "", 0, outcome).values()["accuracy_honest"]
            said = f"halted: {outcome['halted']}" if outcome["halted"] else decimal(accuracy)
            left = (time.monotonic() - began) / number * (len(waiting) - number)
            about = f"; {human_seconds(left)} left" if number < len(waiting) else ""
            print(f"{number:>{width}}/{len(waiting)}  {cell}: {said}  ({outcome['seconds']:.1f} s{about})", flush=True)
    return failed


def _report(path: Path, cells: list[Cell], kept: dict[str, Result], config: DictConfig) -> str:
    """Write the table and the picture of what there is; what to say about it."""
    entries = [
        Entry(cell.attack, cell.defence, cell.partition, cell.seed, kept[cell.file])
        for cell in cells
        if cell.file in kept
    ]
    if not entries:
        return f"{path}: no cell has a result"
    entries = of_the_same_clients(entries)
    if config.reference is not None:
        entries = with_fairness(entries, *config.reference)
    write_atomically(path / "matrix.csv", matrix_csv(entries))
    write_atomically(path / "matrix.md", matrix_markdown(entries, config.name))
    matrix_plot(entries, path / "matrix.svg")
    halted = Counter(entry.halted for entry in entries)[True]
    return f"{len(entries)} cells{f', {halted} halted' if halted else ''}; {path}: matrix.md, matrix.csv, matrix.svg"
