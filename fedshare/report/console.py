"""The table of rounds, as it grows: coloured and with a progress bar in a terminal, plain lines anywhere else."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from fedshare.report.rows import MARK, among, headline, remark
from fedshare.report.units import decimal, human_bytes, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    title: str
    width: int
    keep: int  # in a narrow terminal the lowest goes first
    cell: Callable[[Row], str]
    style: str = ""
    marked: bool = False  # where its number is over other clients than the one above

    def aligned(self, text: str, mark: str = " ") -> str:
        """With a place for a mark behind it."""
        return (text.ljust(self.width) if self.title == "notes" else text.rjust(self.width)) + mark


def _bytes(row: Row, key: str) -> str:
    return human_bytes(row[key]) if key in row else "-"


def _seconds(row: Row) -> str:
    seconds = sum(row["seconds"].values()) if "seconds" in row else None
    return decimal(seconds, 2 if seconds is not None and seconds < 99.995 else 0)


def _notes(row: Row) -> str:
    saved = row.get("seconds", {}).get("save", 0) > 0
    counts = [f"{name} {len(row[name])}" for name in ("dropped", "absent", "untested") if row.get(name)]
    return ", ".join(["ckpt"] * saved + counts)


def _headline(row: Row, suffix: str = "") -> str:
    return decimal(row.get(headline([row]) + suffix))


METRIC = "acc"  # the title of the headline metric's column, where that is accuracy
COLUMNS = (
    Column("round", 5, 10, lambda row: str(row["round"]), "bold"),
    Column(METRIC, 6, 9, _headline, "cyan", marked=True),
    Column("mean", 6, 1, lambda row: _headline(row, "_mean"), marked=True),
    Column("worst10%", 8, 8, lambda row: _headline(row, "_worst10"), marked=True),
    Column("loss", 7, 7, lambda row: decimal(row.get("loss")), marked=True),
    Column("up", 8, 5, lambda row: _bytes(row, "bytes_up")),
    Column("down", 8, 2, lambda row: _bytes(row, "bytes_down")),
    Column("s/round", 7, 4, _seconds),
    Column("digest", 8, 3, lambda row: str(row.get("digest", "-"))[:8], "dim"),
    Column("notes", 16, 6, _notes, "yellow"),
)
GAP = " "


def fitting(width: int | None) -> list[Column]:
    """The columns that fit into `width` characters, in their order; all of them where there is no width to keep."""
    columns = list(COLUMNS)
    while width is not None and len(columns) > 1 and sum(c.width + len(MARK + GAP) for c in columns) - len(GAP) > width:
        columns.remove(min(columns, key=lambda column: column.keep))
    return columns


class Progress:
    """A context manager that prints one line a round.

    `rounds` is the number of the last round, `first` the number of the first one to come (above 1 for a run resumed),
    `before` the last row with a test before that, `metric` the one by which clients are compared. Numbers over other
    clients than those of the test before, or not over all, are marked.
    Without a terminal, lines are plain text, flushed one by one, without any ANSI code.
    """

    def __init__(
        self,
        rounds: int,
        first: int = 1,
        header: str = "",
        stream: TextIO | None = None,
        metric: str = "accuracy",
        before: Mapping[str, Any] | None = None,
    ) -> None:
        self.metric = METRIC if metric == "accuracy" else metric
        self.rounds, self.first, self.header = rounds, first, printable(header)
        self.stream = stream or sys.stdout
        self.before = before
        self.bar: Bar | None = None
        self.lines = 0  # since the column titles were last shown

    def __enter__(self) -> Self:
        if self.stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown"):
            self.bar = self._make_bar()
            self.bar.start()
        if self.header:
            self._print([(self.header, "bold")], wrap=True)
        self._titles()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def row(self, row: Row) -> None:
        """Show one round, a row of ``metrics.jsonl``."""
        if self.bar and self.lines >= self.bar.console.height - 3:
            self._titles()
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=row["round"])
        if said := remark(row, self.before):
            self.note(f"round {row['round']}: {said}")
        marks = {True: MARK if said else " ", False: " "}
        self._print([(c.aligned(c.cell(row), marks[c.marked]), c.style) for c in self._columns()])
        if among(row) is not None:
            self.before = row

    def note(self, text: str) -> None:
        """Show a line of warning."""
        self._print([("! " + printable(text), "yellow")], wrap=True)

    def _columns(self) -> list[Column]:
        return fitting(self.bar.console.width if self.bar else None)

    def _titles(self) -> None:
        titles = {METRIC: self.metric}
        self._print([(column.aligned(titles.get(column.title, column.title)), "dim") for column in self._columns()])
        self.lines = 0

    def _print(self, cells: list[tuple[str, str]], wrap: bool = False) -> None:
        self.lines += 1
        encoding = self.stream.encoding or "utf-8"
        cells = [(text.encode(encoding, "replace").decode(encoding), style) for text, style in cells]
        if self.bar is None:
            print(GAP.join(text for text, _ in cells).rstrip(), file=self.stream, flush=True)
            return
        from rich.text import Text

        line = Text(GAP).join(Text(text, style) for text, style in cells)
        self.bar.print(line, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")

    def _make_bar(self) -> "Bar":
        from rich import progress
        from rich.console import Console

        bar = progress.Progress(
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left", style="dim"),
            progress.TimeRemainingColumn(),
            console=Console(file=self.stream, highlight=False),
            refresh_per_second=2,  # the bar shares the processor with the training
            speed_estimate_period=24 * 3600,  # a round may last longer than rich's 30 s
            expand=True,
        )
        bar.add_task("rounds", total=self.rounds, completed=self.first - 1)
        return bar
