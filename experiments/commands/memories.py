"""`fedshare admin memories`: list and delete the memories of runs on this host."""

import argparse
import time
from pathlib import Path

from fedshare.errors import NAME, UserError, brief
from fedshare.experiments.options import Parser
from fedshare.machine.files import state_folder
from fedshare.transport import memories as memory
from fedshare.transport.memories import Remembered

_DAY = 86400.0  # seconds
_ALL = "all"


def memories(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    folder = state_folder(options.state)
    found = memory.find(folder)
    for runs, kept in ((options.keep, True), (options.no_keep, False)):
        for run in _named(runs, found, folder):
            run.keep(kept)
            print(f"{run.run}: {'is kept until --no-keep' if kept else 'is no longer kept'}")
    if options.delete:
        return _delete(options, memory.find(folder), folder)
    if not (options.keep or options.no_keep):
        print("\n".join(_table(_older(found, options.older_than))) if found else f"{folder}: holds memories of no run")
    return 0


def _delete(options: argparse.Namespace, found: list[Remembered], folder: Path) -> int:
    """Delete by name, or all that are certainly unneeded, and print the ones it keeps."""
    if _ALL not in options.delete:
        chosen = _older(_named(options.delete, found, folder), options.older_than)
        for run in chosen:
            if run.at_work or run.kept:
                run.delete()  # raises the reason, before anything is deleted
        for run in chosen:
            _remove(run)
        if not chosen:
            print("nothing is so old")
        return 0
    for run in _older(found, options.older_than):
        if run.kept or run.at_work or run.private:
            why = "is kept" if run.kept else "a client takes part in it"
            if not run.kept and not run.at_work:
                why = f"holds what private training has cost: --delete {run.run} deletes it all the same"
            print(f"{run.run}: left: {why}")
        else:
            _remove(run)
    return 0


def _remove(run: Remembered) -> None:
    run.delete()
    print(f"{run.run}: deleted, {_size(run.bytes)}")


def _older(found: list[Remembered], days: float | None) -> list[Remembered]:
    return [run for run in found if days is None or run.used < time.time() - days * _DAY]


def _named(names: list[str], found: list[Remembered], folder: Path) -> list[Remembered]:
    """Find by id or unique prefix. Raises UserError if a name matches none, or several."""
    chosen = []
    for name in names:
        fitting = [run for run in found if name and run.run.startswith(name)]
        if len(fitting) != 1:
            have = ", ".join(run.run for run in (fitting or found)[:5]) or "none"
            what = "names several runs" if fitting else f"no such run in {folder}"
            raise UserError(f"{brief(name, NAME)}: {what}: {have}")
        chosen += fitting
    return chosen


def _table(found: list[Remembered]) -> list[str]:
    lines = [f"{'run':16}  clients  rounds       {'size':>9}  last used"]
    for run in found:
        rounds = "none" if run.rounds is None else f"{run.rounds[0]} to {run.rounds[1]}"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.used))
        notes = [
            *["a client takes part in it"] * run.at_work,
            *["kept"] * run.kept,
            *["with the cost of private training"] * run.private,
        ]
        lines.append(
            f"{run.run}  {run.clients:7}  {rounds:12} {_size(run.bytes):>9}  {used}  {', '.join(notes)}".rstrip()
        )
    return lines


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.1f} GB"


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10**6:
        raise UserError(f"--older-than {brief(text, NAME)}: must be a number of days, 0 or more")
    return value


def _parser() -> Parser:
    made = Parser(
        prog="fedshare admin memories",
        description="The state that the clients of this host store for runs. RUN is a run's id, or its beginning; "
        "run-id in the server's folder of the run contains the id.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--state", metavar="DIR", help="where clients store their state; default: as for `fedshare client`"
    )
    made.add_argument("--older-than", metavar="DAYS", type=_days, help="only memories last used longer ago than this")
    delete = f"memory to delete; {_ALL}: all but those that are kept, in use, or hold the cost of private training"
    made.add_argument("--delete", metavar="RUN", action="append", default=[], help=delete)
    made.add_argument(
        "--keep", metavar="RUN", action="append", default=[], help="protect it from deletion, until --no-keep"
    )
    made.add_argument("--no-keep", metavar="RUN", action="append", default=[], help="end the protection of --keep")
    return made
