"""Comparison of several runs with the same clients, client by client."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from fedshare.report.fairness import collaborative, jain
from fedshare.report.plots import BLUE, GREEN, GREY, INK, RED, figure_at
from fedshare.report.rows import MARK, evaluations, headline, higher, remark
from fedshare.report.units import decimal
from fedshare.tasks.metrics import worst_share

MOST_LINES, SOME_LINES = 60, 10  # clients in the terminal: all up to MOST_LINES, else those that differ most
MOST_NAMED, MOST_JOINED = 50, 100  # most clients in the plot with a number each; with a line from worst to best
WIDEST = 100  # characters of a table; with longer names, the columns are numbered
COLOURS = (BLUE, RED, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = "os^DvPX"


@dataclass(frozen=True)
class Run:
    """The last evaluation of a run; `accuracy` is its headline metric."""

    name: str
    place: str  # its folder
    round: int
    accuracy: dict[int, float]  # by client
    examples: dict[int, int]
    overall: dict[str, float | None]
    metric: str = "accuracy"
    higher: bool = True  # whether higher is better
    remark: str = ""  # why its means are not comparable with others
    untested: frozenset[int] = frozenset()


def last_evaluation(rows: list[dict[str, Any]], name: str, place: str) -> Run | None:
    """Return it from the rows of ``metrics.jsonl``; None if no client has been tested yet."""
    for number, row in reversed(list(enumerate(rows))):
        metric = headline([row])
        if metric in row:
            before = evaluations(rows[:number])
            said = remark(row, before[-1] if before else None)
            missing = frozenset(map(int, row.get("untested", ())))
            accuracy, examples = (
                {int(client): value for client, value in row["per_client"][key].items()} for key in (metric, "examples")
            )
            overall = {kind: row.get(f"{metric}{kind}") for kind in ("", "_mean", "_worst10")}
            better = higher([row])
            return Run(name, place, row["round"], accuracy, examples, overall, metric, better, said, missing)
    return None


def unlike(a: Run, b: Run) -> str | None:
    """Return the first difference in metric or in a client's test examples, as a sentence; None if there is none.

    Clients that are absent from one run are ignored.
    """
    if a.metric != b.metric:
        return f"{a.place} is about {a.metric}, {b.place} about {b.metric}"
    for client in sorted((a.examples.keys() | b.examples.keys()) - a.untested - b.untested):
        mine, others = (run.examples.get(client, 0) for run in (a, b))
        if mine != others:
            return f"client {client} was tested on {mine} examples in {a.place} and on {others} in {b.place}"
    return None


def titles(names: list[str], *others: list[str]) -> list[str]:
    """Return the titles of the runs: their names if all differ, else the first of the other lists whose items do.

    A common suffix is omitted: ``fedavg`` and ``fedcac`` for ``fedavg-digits-shards``, ``fedcac-digits-shards``.
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
    """Return a table: a line per client with its best run marked, then summary statistics and pairwise wins."""
    heads = [run.name for run in runs]
    label = max(len("standard deviation"), len(_fairness_with(heads[0])))
    if wide := label + 15 + sum(3 + max(7, len(head)) for head in heads) > WIDEST:
        heads = [f"({number})" for number in range(1, 1 + len(runs))]
    clients, both = everyone(runs), common(runs)
    shown = clients if len(clients) <= MOST_LINES else _most_different(runs)[:SOME_LINES]
    lines = [
        [str(c), f"{_examples(runs, c):,}", *_marked([run.accuracy.get(c) for run in runs], runs[0].higher)]
        for c in shown
    ]
    those = [_among(run, both) for run in runs]
    fair = [_fairness(those[0], run) for run in those[1:]]
    more = runs[0].higher
    means, worst = (_marked([run.overall[kind] for run in those], more) for kind in ("_mean", "_worst10"))
    # A metric over all examples cannot be restricted to a subset of the clients.
    overall = [run.overall[""] for run in runs]
    whole = [decimal(value) + MARK for value in overall] if len(both) < len(clients) else _marked(overall, more)
    spread = [list(run.accuracy.values()) for run in those]
    lines += [
        ["mean of clients", "", *means],
        ["standard deviation", "", *(decimal(pstdev(values)) + " " if values else "- " for values in spread)],
        ["worst 10 %", "", *worst],
        ["all examples", f"{sum(_examples(runs, client) for client in clients):,}", *whole],
        ["Jain's index", "", *(decimal(jain(values)) + " " for values in spread)],
        [_fairness_with(heads[0]), "", "- ", *(decimal(value, 2) + " " for value in fair)],
    ]
    table = _aligned([["client", "test examples", *(f"{head} " for head in heads)], *lines])
    table.insert(1 + len(shown), "")
    if len(shown) < len(clients):
        table.insert(0, f"the {len(shown)} of {len(clients)} clients that differ most; --into FILE has all\n")
    legend = [
        f"{head:<{max(map(len, heads))}}  {f'{run.name}  ' * wide}{run.place}, round {run.round}"
        f"{f'{MARK} {run.remark}' if run.remark else ''}"
        for head, run in zip(heads, runs, strict=True)
    ]
    if len(both) < len(clients):
        table += ["", f"{MARK} of the {len(both)} clients tested in every run; all examples are each run's own"]
    undefined = any(map(math.isnan, fair))
    footnote = [f"{_fairness_with(heads[0])} is nan where accuracies do not spread", ""] if undefined else []
    return "\n".join([*legend, "", *table, "", *footnote, *(_duel(runs[0], run) for run in runs[1:])])


def _fairness_with(name: str) -> str:
    return f"fairness with {name}"


def everyone(runs: list[Run]) -> list[int]:
    """The clients tested in at least one run."""
    return sorted(set[int]().union(*(run.accuracy for run in runs)))


def common(runs: list[Run]) -> list[int]:
    """The clients tested in every run."""
    return sorted(set(runs[0].accuracy).intersection(*(run.accuracy for run in runs)))


def _examples(runs: list[Run], client: int) -> int:
    return next(run.examples[client] for run in runs if client in run.examples)


def _among(run: Run, clients: list[int]) -> Run:
    """Restrict a run to these clients."""
    if len(clients) == len(run.accuracy):
        return run
    accuracy = {client: run.accuracy[client] for client in clients}
    values = list(accuracy.values())
    mean = fmean(values) if values else None
    worst = worst_share(values, 0.1, run.higher) if values else None
    return replace(run, accuracy=accuracy, overall={"": None, "_mean": mean, "_worst10": worst})


def _fairness(first: Run, run: Run) -> float:
    clients = sorted(first.accuracy)
    return collaborative([first.accuracy[client] for client in clients], [run.accuracy[client] for client in clients])


def _most_different(runs: list[Run]) -> list[int]:
    def difference(client: int) -> float:
        accuracies = [run.accuracy[client] for run in runs if client in run.accuracy]
        return max(accuracies) - min(accuracies)

    return sorted(everyone(runs), key=lambda client: (-difference(client), client))


def _marked(values: Sequence[float | None], higher: bool) -> list[str]:
    """Format the values, with a star at the best unless all are equal."""
    known = {value for value in values if value is not None}
    best = (max if higher else min)(known) if len(known) > 1 else None
    return [decimal(value) + ("*" if best is not None and value == best else " ") for value in values]


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)).rstrip() for line in lines]


def _duel(a: Run, b: Run) -> str:
    pairs = ((a, b), (b, a)) if a.higher else ((b, a), (a, b))
    both = common([a, b])
    better, worse = (sum(one.accuracy[client] > two.accuracy[client] for client in both) for one, two in pairs)
    return f"{a.name} is better than {b.name} for {better} of {len(both)} clients, worse for {worse}"


def comparison_csv(runs: list[Run]) -> str:
    """Return a line per client: number, test examples, and the accuracy in each run that has tested it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["client", "examples", *(run.name for run in runs)])
    for client in everyone(runs):
        table.writerow([client, _examples(runs, client), *(run.accuracy.get(client) for run in runs)])
    return text.getvalue()


def comparison_plot(runs: list[Run], path: Path | str, title: str = "") -> None:
    """Draw each client's accuracy in each run, the clients in the order of the first run; lines for the means.

    Means are over the clients that all runs have tested. The marks of later runs are smaller, and the dashes of the
    means alternate, so that coinciding ones stay visible.
    """
    first, both = runs[0].accuracy, common(runs)
    clients = sorted(everyone(runs), key=lambda client: (first.get(client, math.inf), client))
    values = np.array([[run.accuracy.get(client, math.nan) for client in clients] for run in runs])
    at = np.arange(len(clients))
    joined = len(clients) <= MOST_JOINED
    with figure_at(path, 2.6 + min(9.0, max(3.5, 0.22 * len(clients))), 4.2) as figure:
        axes = figure.subplots()
        axes.grid(axis="y")
        if joined:
            ends = np.stack([np.nanmin(values, axis=0), np.nanmax(values, axis=0), np.full(len(at), np.nan)], axis=1)
            axes.plot(at.repeat(3), ends.flatten(), color=GREY, linewidth=0.6)
        for number, (run, line) in enumerate(zip(runs, values, strict=True)):
            colour, marker = (kinds[number % len(COLOURS)] for kinds in (COLOURS, MARKERS))
            size = (7.5 if joined else 4.0) * (1 - 0.55 * number / max(1, len(runs) - 1))
            style: Any = {"color": colour, "marker": marker, "markersize": size, "linestyle": ""}
            if number // len(COLOURS) % 2:
                style["markerfacecolor"] = "none"
            mean = line[[clients.index(client) for client in both]].mean() if both else math.nan
            dash = 5 if len(runs) > 1 else 0
            turns: Any = {"linestyle": (-dash * number, (dash, dash * (len(runs) - 1)))} if dash else {}
            axes.axhline(mean, color=colour, linewidth=1.2, **turns)
            axes.plot(at, line, label=f"{run.name}: {decimal(mean)}{MARK if run.remark else ''}", **style)
        axes.set(xlabel=f"clients, from {runs[0].name}'s worst to its best", ylabel=f"test {runs[0].metric}")
        axes.set_xlim(-0.6, len(clients) - 0.4)
        named = len(clients) <= MOST_NAMED
        axes.set_xticks(at if named else [], map(str, clients if named else []))
        if named and len(clients) > 20:
            axes.tick_params(axis="x", labelsize=7, rotation=90)
        axes.set_title(title)
        of = "" if len(both) == len(clients) else f"\n(the {len(both)} tested in all runs)"
        away = [f"{MARK} {run.name}: {run.remark}" for run in runs if run.remark]
        if away:
            figure.supxlabel("\n".join(away), fontsize=8)
        axes.legend(title=f"mean of clients{of}", loc="upper left", bbox_to_anchor=(1, 1), alignment="left")
