"""`fedshare matrix`: attacks by defences by partitions by seeds, each cell a run, in one table and one plot."""

import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from contextlib import closing
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import RunHalted, UserError, first_line
from fedshare.experiments.beginnings import check_made, warn
from fedshare.experiments.commands.cell import Cell, Result
from fedshare.experiments.commands.crew import play_all
from fedshare.experiments.commands.plan import AXES, plan, wanted
from fedshare.experiments.config import application
from fedshare.experiments.config.own import add_config_dir
from fedshare.experiments.options import Parser
from fedshare.experiments.signals import terminable
from fedshare.machine import devices
from fedshare.machine.files import on_disk, sweep, write_atomically, writing
from fedshare.report.cells import Entry, of_the_same_clients, with_fairness
from fedshare.report.matrix import matrix_csv, matrix_markdown
from fedshare.report.matrix_plot import matrix_plot
from fedshare.report.units import decimal, human_seconds
from fedshare.runs import RunFolder

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
    """Play the waiting cells and write the report; return how many gave no result."""
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


def _kept(folder: Path, cells: list[Cell]) -> tuple[dict[str, Result], list[Cell]]:
    """Return the results that `folder` holds, by file, and the cells without one, without duplicates."""
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
    """Play the waiting cells, printing a line each; return how many gave no result."""
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
    """Write the table and the plot of the results; return a summary."""
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
