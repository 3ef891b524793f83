"""Attacks by defences by partitions, over seeds: as a line a cell, as tables a person reads, and as a heat map."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshare.errors import printable
from fedshare.report.fairness import collaborative
from fedshare.report.plots import INK, figure_at, heat_map
from fedshare.report.rows import MARK, headline, higher
from fedshare.report.units import decimal, human_bytes, human_seconds
from fedshare.tasks.metrics import weighted_mean, worst_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = "cividis"  # alike for all eyes, and its lightness alone tells the order
DARK = 0.55  # below it, writing is white
_OF_ROW = (
    *("accuracy_adversaries", "attack_success", "adversaries_weight", "adversaries_removed", "honest_removed"),
    *("accuracy", "accuracy_mean", "accuracy_worst10", "loss", "tested", "tested_of"),
)


@dataclass(frozen=True)
class Entry:
    """A cell and what came of it: `result` has the keys ``row`` (the last one), ``clients``, ``adversaries``,
    ``halted`` (why, or None), ``detection``, ``rounds``, ``bytes_up``, ``bytes_down`` and ``seconds``."""

    attack: str
    defence: str
    partition: str
    seed: int
    result: dict[str, Any]
    fairness: float | None = None
    aside: frozenset[int] = frozenset()  # who is left out beside its own adversaries, because others leave them out

    @property
    def halted(self) -> bool:
        return self.result["halted"] is not None

    @property
    def accuracy(self) -> dict[int, float | None]:
        """By client."""
        found = self.result["row"].get("per_client", {}).get(headline([self.result["row"]]), {})
        return {int(client): value for client, value in found.items()}

    @property
    def honest(self) -> list[int]:
        """The tested clients that its numbers are about. All are honest where nobody is an adversary."""
        return sorted(self.accuracy.keys() - self.aside - set(self.result["adversaries"]))

    @property
    def lacking(self) -> bool:
        """Whether not all clients were tested."""
        return bool(self.result["row"].get("untested"))

    def values(self) -> dict[str, Any]:
        """Its numbers by name; None for what it has not."""
        row = self.result["row"]
        found = [math.nan if (value := self.accuracy[client]) is None else value for client in self.honest]
        mean = weighted_mean(found, [1.0] * len(found))
        worst = worst_share(found, 0.1, higher([row])) if found else None
        removed = {} if self.result["adversaries"] or "removed" not in row else {"honest_removed": len(row["removed"])}
        return {
            "accuracy_honest": _finite(mean),
            "accuracy_honest_worst10": _finite(worst),
            "fairness": self.fairness,
            **{name: (removed | row).get(name) for name in _OF_ROW},
            **dict.fromkeys(("tpr", "fpr"), None),
            **{name: value for name, value in (self.result["detection"] or {}).items() if name != "rounds"},
            "removal_round": (self.result["detection"] or {}).get("rounds"),
            **{name: self.result[name] for name in ("rounds", "bytes_up", "bytes_down", "seconds")},
        }


def of_the_same_clients(entries: Sequence[Entry]) -> list[Entry]:
    """`entries` of which those with one partition and seed leave out the same clients: who lies in one of them."""
    liars: dict[tuple[str, int], set[int]] = {}
    for entry in entries:
        liars.setdefault((entry.partition, entry.seed), set()).update(entry.result["adversaries"])
    return [replace(entry, aside=frozenset(liars[entry.partition, entry.seed])) for entry in entries]


def with_fairness(entries: Sequence[Entry], attack: str, defence: str) -> list[Entry]:
    """`entries` with the collaborative fairness of each: how the accuracies of its honest clients go with those that
    they have in the cell of `attack` and `defence` on the same partition with the same seed."""
    alone = {
        (entry.partition, entry.seed): entry.accuracy
        for entry in entries
        if (entry.attack, entry.defence) == (attack, defence) and not entry.halted
    }
    judged = []
    for entry in entries:
        own, found = alone.get((entry.partition, entry.seed), {}), None
        both = [(own.get(client), entry.accuracy[client]) for client in entry.honest]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        if pairs and not entry.halted and entry.defence != defence:
            found = collaborative([a for a, _ in pairs], [b for _, b in pairs])
        judged.append(replace(entry, fairness=_finite(found)))
    return judged


def matrix_csv(entries: Sequence[Entry]) -> str:
    """A line a cell: what it is, its numbers, why it halted, and the accuracy of each client."""
    clients = sorted(set().union(*(entry.accuracy for entry in entries)))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = list(entries[0].values()) if entries else []
    table.writerow(
        ["attack", "defence", "partition", "seed", *names, "adversaries", "halted", *(f"client_{c}" for c in clients)]
    )
    for entry in entries:
        who = " ".join(map(str, entry.result["adversaries"]))
        accuracies = [entry.accuracy.get(client) for client in clients]
        cell = [entry.attack, entry.defence, entry.partition, entry.seed]
        table.writerow([*cell, *entry.values().values(), who, entry.result["halted"], *accuracies])
    return text.getvalue()


Cells = dict[tuple[str, str], list[Entry]]  # by attack and defence, of one partition


def matrix_markdown(entries: Sequence[Entry], title: str) -> str:
    """For each partition the tables of what there is to tell, a row an attack, a column a defence."""
    seeds = sorted({entry.seed for entry in entries})
    told = ["accuracies are the mean ± the standard deviation over the seeds"] if len(seeds) > 1 else []
    told += ["a row's best is bold", "`-`: not known, or not defined"]
    if any(entry.aside - set(entry.result["adversaries"]) for entry in entries):
        told.append("who lies in some row is left out of all")
    if any(entry.lacking for entry in entries):
        told.append(f"`{MARK}`: not all clients were tested")
    lines = [f"# {printable(title)}", "", f"Seeds {', '.join(map(str, seeds))}; {'; '.join(told)}.", ""]
    for partition in _names(entries, "partition"):
        cells = _cells(entries, partition)
        whose = "Accuracy of the honest clients" if _anybody_lies(entries) else "Accuracy of the clients"
        lines += [f"## {printable(partition)}", "", *_table(whose, cells, _honest, _best)]
        for heading, show in _TABLES:
            lines += _table(heading, cells, show)
    spent = {name: math.fsum(entry.result[name] for entry in entries) for name in ("bytes_up", "bytes_down", "seconds")}
    up, down = human_bytes(spent["bytes_up"]), human_bytes(spent["bytes_down"])
    lines.append(f"{len(entries)} cells, {human_seconds(spent['seconds'])} of one core, {up} up, {down} down.")
    return "\n".join(lines) + "\n"


def _table(
    heading: str,
    cells: Cells,
    show: Callable[[list[Entry]], str | None],
    best: Callable[[Cells, str], set[str]] = lambda *_: set(),
) -> list[str]:
    """Nothing where no cell has something to show; without the rows and columns in which none has."""
    shown = {names: text for names, group in cells.items() if (text := show(group)) is not None}
    if not shown:
        return []
    attacks, defences = (list(dict.fromkeys(names[axis] for names in shown)) for axis in (0, 1))
    lines = [f"### {heading}", "", _line(["", *defences]), "|---|" + "---:|" * len(defences)]
    for attack in attacks:
        bold = best(cells, attack)
        texts = [shown.get((attack, defence), "-") for defence in defences]
        marked = [f"**{t}**" if defence in bold else t for t, defence in zip(texts, defences, strict=True)]
        lines.append(_line([attack, *marked]))
    return [*lines, ""]


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(printable(text).replace("|", "\\|") for text in texts) + " |"


def _best(cells: Cells, attack: str) -> set[str]:
    """The defences under which the honest fare best, as far as is shown, and none of whose runs has halted."""
    means = {
        defence: round(mean, 3)
        for (name, defence), group in cells.items()
        if name == attack and (mean := _mean(group)) is not None and not any(entry.halted for entry in group)
    }
    return {defence for defence, mean in means.items() if mean == max(means.values())} if len(means) > 1 else set()


def _honest(group: list[Entry]) -> str | None:
    text, halts = _spread(group, "accuracy_honest"), sum(entry.halted for entry in group)
    if text is None:
        return "halted" if halts else None
    text += MARK if any(entry.lacking for entry in group) else ""
    return f"{text} ({halts} halted)" if halts else text


def _spread(group: list[Entry], name: str, digits: int = 3) -> str | None:
    values = _known(group, name)
    if not values:
        return None
    spread = f" ± {decimal(stdev(values), digits)}" if len(values) > 1 else ""
    return f"{decimal(fmean(values), digits)}{spread}"


def _removed(group: list[Entry]) -> str | None:
    liars, honest = (_known(group, name) for name in ("adversaries_removed", "honest_removed"))
    return f"{f'{fmean(liars):.3g}' if liars else '-'} / {fmean(honest):.3g}" if honest else None


_TABLES: tuple[tuple[str, Callable[[list[Entry]], str | None]], ...] = (
    ("Adversaries removed / honest clients removed", _removed),
    ("Success of the attack at honest clients", lambda group: _spread(group, "attack_success")),
    ("Weight of the adversaries in the last round", lambda group: _spread(group, "adversaries_weight")),
    ("Accuracy that the adversaries obtain", lambda group: _spread(group, "accuracy_adversaries")),
    ("Collaborative fairness among the honest clients", lambda group: _spread(group, "fairness", 1)),
)


def _anybody_lies(entries: Sequence[Entry]) -> bool:
    return any(entry.result["adversaries"] for entry in entries)


def _mean(group: list[Entry]) -> float | None:
    values = _known(group, "accuracy_honest")
    return fmean(values) if values else None


def _known(group: list[Entry], name: str) -> list[float]:
    """Of the runs that have reached their end."""
    values = (entry.values()[name] for entry in group if not entry.halted)
    return [value for value in values if value is not None and math.isfinite(value)]


def _names(entries: Sequence[Entry], axis: str) -> list[str]:
    return list(dict.fromkeys(getattr(entry, axis) for entry in entries))


def _cells(entries: Sequence[Entry], partition: str) -> Cells:
    cells: Cells = {}
    for entry in entries:
        if entry.partition == partition:
            cells.setdefault((entry.attack, entry.defence), []).append(entry)
    return cells


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def matrix_plot(entries: Sequence[Entry], path: Path | str) -> None:
    """Draw the honest clients' accuracy: a panel a partition, a row an attack, a column a defence; halts hatched."""
    attacks, defences, partitions = (_names(entries, axis) for axis in ("attack", "defence", "partition"))
    width, height = 2.6 + 0.58 * max(4, len(defences)), 1.3 + 0.28 * max(3, len(attacks))
    with figure_at(path, width, height * len(partitions)) as figure:
        for axes, partition in zip(figure.subplots(len(partitions), 1, squeeze=False).flat, partitions, strict=True):
            cells = _cells(entries, partition)
            means = np.array(
                [[_mean(cells.get((a, d), [])) for d in defences] for a in attacks], dtype=float
            )  # None becomes NaN
            label = "accuracy\nof the honest" if _anybody_lies(entries) else "accuracy"
            heat_map(figure, axes, np.ma.masked_invalid(means), label, cmap=COLOURS, vmin=0.0, vmax=1.0)
            halts = any(entry.halted for group in cells.values() for entry in group)
            axes.set_title(printable(partition) + ("; hatched: a run has halted" if halts else ""))
            axes.set_xticks(range(len(defences)), map(printable, defences), rotation=35, ha="right")
            axes.set_yticks(range(len(attacks)), map(printable, attacks))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            for row, attack in enumerate(attacks):
                for column, defence in enumerate(defences):
                    group = cells.get((attack, defence), [])
                    mark = MARK if any(entry.lacking for entry in group) else ""
                    _write(axes, column, row, means[row, column], any(entry.halted for entry in group), mark)


def _write(axes: "Axes", column: int, row: int, mean: float, halted: bool, mark: str) -> None:
    from matplotlib.patches import Rectangle

    dark = mean < DARK
    colour = "white" if dark else INK
    if halted:
        hatch = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor=colour, linewidth=0)
        axes.add_patch(hatch)
    if halted or not math.isnan(mean):
        text = "halt" if math.isnan(mean) else f"{mean:.2f}".removeprefix("0") if mean < 0.995 else "1.0"
        around = {"facecolor": "white", "edgecolor": "none", "pad": 1.0} if halted else None
        axes.text(
            column, row, text + mark, ha="center", va="center", size=7.5, color=INK if halted else colour, bbox=around
        )
