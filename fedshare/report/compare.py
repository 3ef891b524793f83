"""Several runs with the same clients, side by side: how well each client fares in each."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev
from typing import Any

import numpy as np

from fedshare.fairness import collaborative, jain
from fedshare.report.plots import BLUE, GREEN, GREY, INK, RED, figure_at
from fedshare.report.rows import headline, higher
from fedshare.report.units import decimal

MOST_LINES, SOME_LINES = 60, 10  # clients in the terminal: up to so many all, else those that differ most
MOST_NAMED, MOST_JOINED = 50, 100  # clients in the picture: with a number each; with a line from worst to best
WIDEST = 100  # characters of a table; with longer names, its columns have numbers
COLOURS = (BLUE, RED, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = "os^DvPX"


@dataclass(frozen=True)
class Run:
    """The last evaluation of a run; `accuracy` is its headline metric's."""

    name: str
    place: str  # its folder
    round: int
    accuracy: dict[int, float]  # by client
    examples: dict[int, int]
    overall: dict[str, float | None]
    metric: str = "accuracy"
    higher: bool = True  # whether more is better


def last_evaluation(rows: list[dict[str, Any]], name: str, place: str) -> Run | None:
    """From the rows of ``metrics.jsonl``; None where no client has been tested yet."""
    for row in reversed(rows):
        metric = headline([row])
        if metric in row:
            accuracy, examples = (
                {int(client): value for client, value in row["per_client"][key].items()} for key in (metric, "examples")
            )
            overall = {kind: row.get(f"{metric}{kind}") for kind in ("", "_mean", "_worst10")}
            return Run(name, place, row["round"], accuracy, examples, overall, metric, higher([row]))
    return None


def unlike(a: Run, b: Run) -> str | None:
    """The first client that is not the same in both, or that the runs are about different metrics."""
    if a.metric != b.metric:
        return f"{a.place} is about {a.metric}, {b.place} about {b.metric}"
    for client in sorted(a.examples.keys() | b.examples.keys()):
        mine, others = (run.examples.get(client, 0) for run in (a, b))
        if mine != others:
            return f"client {client} was tested on {mine} examples in {a.place} and on {others} in {b.place}"
    return None


def titles(names: list[str], *others: list[str]) -> list[str]:
    """What to call the runs: by their names where no two are the same, else by the next list of which that is true.

    What all names end in is left out: ``fedavg`` and ``fedcac`` for ``fedavg-digits-shards``, ``fedcac-digits-shards``.
    """
    parts = [name.split("-") for name in names]
    while all(len(part) > 1 and part[-1] == parts[0][-1] for part in parts):
        parts = [part[:-1] for part in parts]
    called = ["-".join(part) for part in parts]
    for instead in others:
        if len(set(called)) < len(called):
            called = instead
    return called


def comparison(runs: list[Run]) -> str:
    """A line a client, its best marked; what that amounts to; for how many clients the first run is the better one."""
    heads = [run.name for run in runs]
    label = max(len("standard deviation"), len(_fairness_with(heads[0])))
    if wide := label + 15 + sum(3 + max(7, len(head)) for head in heads) > WIDEST:
        heads = [f"({number})" for number in range(1, 1 + len(runs))]
    clients = sorted(runs[0].accuracy)
    shown = clients if len(clients) <= MOST_LINES else _most_different(runs)[:SOME_LINES]
    lines = [
        [str(client), f"{runs[0].examples[client]:,}", *_marked([run.accuracy[client] for run in runs], runs[0].higher)]
        for client in shown
    ]
    fair = [_fairness(runs[0], run) for run in runs[1:]]
    more = runs[0].higher
    means, worst, all_examples = (
        _marked([run.overall[kind] for run in runs], more) for kind in ("_mean", "_worst10", "")
    )
    lines += [
        ["mean of clients", "", *means],
        ["standard deviation", "", *(decimal(pstdev(run.accuracy.values())) + " " for run in runs)],
        ["worst 10 %", "", *worst],
        ["all examples", f"{sum(runs[0].examples.values()):,}", *all_examples],
        ["Jain's index", "", *(decimal(jain(list(run.accuracy.values()))) + " " for run in runs)],
        [_fairness_with(heads[0]), "", "- ", *(decimal(value, 2) + " " for value in fair)],
    ]
    table = _aligned([["client", "test examples", *(f"{head} " for head in heads)], *lines])
    table.insert(1 + len(shown), "")
    if len(shown) < len(clients):
        table.insert(0, f"the {len(shown)} of {len(clients)} clients that differ most; --into FILE has all\n")
    legend = [
        f"{head:<{max(map(len, heads))}}  {f'{run.name}  ' * wide}{run.place}, round {run.round}"
        for head, run in zip(heads, runs, strict=True)
    ]
    undefined = any(map(math.isnan, fair))
    footnote = [f"{_fairness_with(heads[0])} is nan where accuracies do not spread", ""] if undefined else []
    return "\n".join([*legend, "", *table, "", *footnote, *(_duel(runs[0], run) for run in runs[1:])])


def _fairness_with(name: str) -> str:
    return f"fairness with {name}"


def _fairness(first: Run, run: Run) -> float:
    clients = sorted(first.accuracy)
    return collaborative([first.accuracy[client] for client in clients], [run.accuracy[client] for client in clients])


def _most_different(runs: list[Run]) -> list[int]:
    def difference(client: int) -> float:
        accuracies = [run.accuracy[client] for run in runs]
        return max(accuracies) - min(accuracies)

    return sorted(runs[0].accuracy, key=lambda client: (-difference(client), client))


def _marked(values: Sequence[float | None], higher: bool) -> list[str]:
    """With a star at the best, where they are not all the same."""
    known = {value for value in values if value is not None}
    best = (max if higher else min)(known) if len(known) > 1 else None
    return [decimal(value) + ("*" if best is not None and value == best else " ") for value in values]


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)).rstrip() for line in lines]


def _duel(a: Run, b: Run) -> str:
    pairs = ((a, b), (b, a)) if a.higher else ((b, a), (a, b))
    better, worse = (sum(one.accuracy[client] > two.accuracy[client] for client in a.accuracy) for one, two in pairs)
    return f"{a.name} is better than {b.name} for {better} of {len(a.accuracy)} clients, worse for {worse}"


def comparison_csv(runs: list[Run]) -> str:
    """A line a client: number, test examples, and the accuracy in each run."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["client", "examples", *(run.name for run in runs)])
    for client in sorted(runs[0].accuracy):
        table.writerow([client, runs[0].examples[client], *(run.accuracy[client] for run in runs)])
    return text.getvalue()


def comparison_plot(runs: list[Run], path: Path | str) -> None:
    """Draw each client's accuracy in each run, the clients in the order of the first run; lines for the means."""
    accuracy = runs[0].accuracy
    clients = sorted(accuracy, key=lambda client: (accuracy[client], client))
    values = np.array([[run.accuracy[client] for client in clients] for run in runs])
    at = np.arange(len(clients))
    joined = len(clients) <= MOST_JOINED
    with figure_at(path, 2.6 + min(9.0, max(3.5, 0.22 * len(clients))), 4.2) as figure:
        axes = figure.subplots()
        axes.grid(axis="y")
        if joined:
            ends = np.stack([values.min(axis=0), values.max(axis=0), np.full(len(clients), np.nan)], axis=1)
            axes.plot(at.repeat(3), ends.flatten(), color=GREY, linewidth=0.6)
        for number, (run, line) in enumerate(zip(runs, values, strict=True)):
            colour, marker = (kinds[number % len(COLOURS)] for kinds in (COLOURS, MARKERS))
            style: Any = {"color": colour, "marker": marker, "markersize": 5 if joined else 2.5, "linestyle": ""}
            if number // len(COLOURS) % 2:
                style["markerfacecolor"] = "none"
            axes.axhline(line.mean(), color=colour, linewidth=0.9, dashes=(4, 2 + number))
            axes.plot(at, line, label=f"{run.name}: {decimal(line.mean())}", **style)
        axes.set(xlabel=f"clients, from {runs[0].name}'s worst to its best", ylabel=f"test {runs[0].metric}")
        axes.set_xlim(-0.6, len(clients) - 0.4)
        named = len(clients) <= MOST_NAMED
        axes.set_xticks(at if named else [], map(str, clients if named else []))
        if named and len(clients) > 20:
            axes.tick_params(axis="x", labelsize=7, rotation=90)
        axes.legend(title="mean of clients", loc="upper left", bbox_to_anchor=(1, 1), alignment="left")
