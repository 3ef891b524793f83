"""Observers of a run besides those that write its records: trackers, printed notes, the search for the best round."""

from pathlib import Path
from typing import Any

from fedshare.experiments.running.keeping import Keeper
from fedshare.experiments.tracking import Note, Tracker
from fedshare.report.best import Best
from fedshare.rounds import Round
from fedshare.runs import Row


class Trackers:
    """The trackers of a run, called in order."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def start(self, config: dict[str, Any], name: str, group: str | None, folder: Path, note: Note) -> None:
        for tracker in self._trackers:
            tracker.start(config, name, group, folder, note)

    def saw(self, done: Round) -> None:
        for tracker in self._trackers:
            tracker.log(done.row)

    def finish(self, completed: bool) -> None:
        for tracker in self._trackers:
            tracker.finish(completed)


class Notes:
    """Reports dropped clients, rounds without uploads, and when the strategy's rule is weakened.

    Of several rounds in a row in which it is weakened, only the first is reported.
    """

    def __init__(self, note: Note, rows: list[Row]) -> None:
        """`rows` are those of earlier rounds."""
        self._note = note
        self._weak = bool(rows) and "weakened" in rows[-1]

    def saw(self, done: Round) -> None:
        for client, reason in done.row["dropped"].items():
            self._note(f"round {done.number}: client {client} dropped: {reason}")
        if not done.row["clients"]:
            self._note(f"round {done.number}: nobody uploads, so nothing changes")
        if "weakened" in done.row and not self._weak:  # only once
            self._note(f"round {done.number}: {done.row['weakened']}")
        self._weak = "weakened" in done.row


class Selection:
    """Looks for the best round, and saves it if a `keeper` is given."""

    def __init__(self, best: Best, keeper: Keeper | None) -> None:
        self._best, self._keeper = best, keeper

    def saw(self, done: Round) -> None:
        if self._best.see(done.row) and self._keeper is not None:
            self._keeper.save_best(done, self._best)
