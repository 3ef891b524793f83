"""The table of rounds, printed as the run goes: colours and a progress bar in a terminal, plain lines elsewhere."""

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from fedshare.errors import printable
from fedshare.report.clock import stamped
from fedshare.report.rows import MARK, among, headline, remark
from fedshare.report.units import decimal, human_bytes, human_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    title: str
    width: int
    keep: int  # priority: in a narrow terminal the lowest are dropped first
    cell: Callable[[Row], str]
    style: str = ""
    marked: bool = False  # whether to mark it if it is over other clients than the row above
    needs: str = ""  # shown if the strategy reports this

    def aligned(self, text: str, mark: str = " ") -> str:
        """The text, aligned, followed by a mark."""
        return (text.ljust(self.width) if self.title == "notes" else text.rjust(self.width)) + mark


def _bytes(row: Row, key: str) -> str:
    return human_bytes(row[key]) if key in row else "-"


def _seconds(row: Row) -> str:
    seconds = sum(row["seconds"].values()) if "seconds" in row else None
    return decimal(seconds, 2 if seconds is not None and seconds < 99.995 else 0)


def _notes(row: Row) -> str:
    saved = row.get("seconds", {}).get("save", 0) > 0
    counts = [f"{name} {len(row[name])}" for name in ("dropped", "absent", "suspended", "untested") if row.get(name)]
    odd = {client for clients in row.get("not_finite", {}).values() for client in clients}
    counts += [f"loss not finite {len(odd)}"] * bool(odd) + ["weakened"] * ("weakened" in row)
    return ", ".join(["ckpt"] * saved + counts)


def _headline(row: Row, suffix: str = "") -> str:
    return decimal(row.get(headline([row]) + suffix))


def _average(row: Row) -> str:
    return decimal(row.get("average", {}).get(headline([row])))


METRIC = "acc"  # title of the column of the headline metric, if that is accuracy
COLUMNS = (
    Column("round", 5, 10, lambda row: str(row["round"]), "bold"),
    Column(METRIC, 6, 9, _headline, "cyan", marked=True),
    Column("mean", 6, 1, lambda row: _headline(row, "_mean"), marked=True),
    Column("worst10%", 8, 8, lambda row: _headline(row, "_worst10"), marked=True),
    Column("average", 7, 6, _average, "cyan", True, "average"),
    Column("consensus", 9, 6, lambda row: decimal(row.get("consensus")), needs="consensus"),
    Column("loss", 7, 7, lambda row: decimal(row.get("loss")), marked=True),
    Column("up", 8, 5, lambda row: _bytes(row, "bytes_up")),
    Column("down", 8, 2, lambda row: _bytes(row, "bytes_down")),
    Column("s/round", 7, 4, _seconds),
    Column("digest", 8, 3, lambda row: str(row.get("digest", "-"))[:8], "dim"),
    Column("notes", 16, 6, _notes, "yellow"),
)
GAP = " "
EVERY = 30.0  # seconds between lines within a round, without a terminal


def fitting(width: int | None, reports: Collection[str] = ()) -> list[Column]:
    """Return the columns of what there is that fit into `width` characters, in order; all if `width` is None."""
    columns = [column for column in COLUMNS if not column.needs or column.needs in reports]
    while width is not None and len(columns) > 1 and sum(c.width + len(MARK + GAP) for c in columns) - len(GAP) > width:
        columns.remove(min(columns, key=lambda column: column.keep))
    return columns


@dataclass(frozen=True)
class Lap:
    """A phase of a round that waits for clients."""

    phase: str
    round: int
    asked: int
    began: float  # monotonic clock
    done: int = 0

    def line(self, now: float, lasted: float | None) -> str:
        """Return its progress and the time left, estimated from the clients done or the previous duration `lasted`."""
        spent = now - self.began
        left = spent / self.done * (self.asked - self.done) if self.done else lasted and max(0.0, lasted - spent)
        about = f", about {human_seconds(left)} left" if left is not None else ""
        return (
            f"  round {self.round}, {self.phase}: {self.done} of {self.asked} clients in {human_seconds(spent)}{about}"
        )


class Progress:
    """A context manager that prints one line per round.

    `rounds` is the last round, `first` the first one to come (above 1 for a resumed run), `before` the last row with a
    test before that, `metric` the one by which clients are compared, `about` a warning to begin with. Numbers over
    other clients than those of the test before, or not over all clients, are marked. Within a round, `heard` shows the
    progress: in a second bar, or without a terminal in a line every `every` seconds. Without a terminal, lines are
    plain text without ANSI codes, flushed one by one, with the time if `times`. `reports`: the strategy's.
    """

    def __init__(
        self,
        rounds: int,
        first: int = 1,
        header: str = "",
        stream: TextIO | None = None,
        metric: str = "accuracy",
        before: Mapping[str, Any] | None = None,
        about: str = "",
        times: bool = False,
        every: float = EVERY,
        reports: Collection[str] = (),
    ) -> None:
        self.metric = METRIC if metric == "accuracy" else metric
        self.rounds, self.first, self.header = rounds, first, printable(header)
        self.stream = stream or sys.stdout
        self.before, self.about = before, about
        self.times, self.every, self.reports = times, every, reports
        self.bar: Bar | None = None
        self.lap: Lap | None = None
        self.lasted: dict[str, float] = {}  # duration of each phase when it last ran
        self._ended, self._writing = threading.Event(), threading.Lock()
        self._spoke = time.monotonic()
        self._clock = threading.Thread(target=self._tick, name="progress", daemon=True)
        self.lines = 0  # since the column titles were last shown

    def __enter__(self) -> Self:
        if self.stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown"):
            self.bar = self._make_bar()
            self.bar.start()
        if self.header:
            self._print([(self.header, "bold")], wrap=True)
        if self.about:
            self.note(self.about)
        self._titles()
        if self.bar is None:
            self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self.bar:
            self.bar.stop()
        else:
            self._clock.join()

    def heard(self, phase: str, round: int, done: int, asked: int) -> None:
        """Report that `done` of the `asked` clients have answered in this phase of a round."""
        now = time.monotonic()
        if done == 0 or self.lap is None:
            self.lap = Lap(phase, round, asked, now)
        self.lap = replace(self.lap, done=done)
        if done == asked:
            self.lasted[phase] = now - self.lap.began
        if self.bar:
            if done == 0:
                self.bar.reset(self.bar.task_ids[1], total=asked, description=phase, visible=True)
            self.bar.update(self.bar.task_ids[1], completed=done)

    def _tick(self) -> None:
        while not self._ended.wait(max(0.01, self._spoke + self.every - time.monotonic())):
            if time.monotonic() - self._spoke < self.every:
                continue  # something else was printed meanwhile
            self._spoke = time.monotonic()
            if lap := self.lap:
                self._print([(lap.line(self._spoke, self.lasted.get(lap.phase)), "dim")])

    def row(self, row: Row) -> None:
        """Show one round, a row of ``metrics.jsonl``."""
        if self.bar and self.lines >= self.bar.console.height - 3:
            self._titles()
        self.lap = None
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=row["round"])
            self.bar.update(self.bar.task_ids[1], visible=False)
        if said := remark(row, self.before):
            self.note(f"round {row['round']}: {said}")
        marks = {True: MARK if said else " ", False: " "}
        self._print([(c.aligned(c.cell(row), marks[c.marked]), c.style) for c in self._columns()])
        if among(row) is not None:
            self.before = row

    def note(self, text: str) -> None:
        """Print a warning."""
        self._print([("! " + printable(text), "yellow")], wrap=True)

    def _columns(self) -> list[Column]:
        return fitting(self.bar.console.width if self.bar else None, self.reports)

    def _titles(self) -> None:
        titles = {METRIC: self.metric}
        self._print([(column.aligned(titles.get(column.title, column.title)), "dim") for column in self._columns()])
        self.lines = 0

    def _print(self, cells: list[tuple[str, str]], wrap: bool = False) -> None:
        self.lines += 1
        encoding = self.stream.encoding or "utf-8"
        cells = [(text.encode(encoding, "replace").decode(encoding), style) for text, style in cells]
        if self.bar is None:
            line = GAP.join(text for text, _ in cells).rstrip()
            with self._writing:
                print(f"{stamped(line) if self.times else line}\n", end="", file=self.stream, flush=True)
                self._spoke = time.monotonic()
            return
        from rich.text import Text

        styled = Text(GAP).join(Text(text, style) for text, style in cells)
        self.bar.print(styled, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")

    def _make_bar(self) -> "Bar":
        from rich import progress
        from rich.console import Console

        bar = progress.Progress(
            progress.TextColumn("{task.description}", style="dim"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left", style="dim"),
            progress.TimeRemainingColumn(),
            console=Console(file=self.stream, highlight=False),
            refresh_per_second=2,  # the bar shares the processor with the training
            speed_estimate_period=24 * 3600,  # in seconds; rich's default of 30 s is too short for a round
            expand=True,
        )
        bar.add_task("", total=self.rounds, completed=self.first - 1)
        bar.add_task("clients", total=None, visible=False)
        return bar
