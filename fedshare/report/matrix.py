"""Attacks by defences by partitions, over seeds: as CSV with a line per cell, and as Markdown tables."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from fedshare.errors import printable
from fedshare.report.cells import Cells, Entry, anybody_lies, cells_of, known_values, mean_of, names_of
from fedshare.report.rows import MARK
from fedshare.report.units import decimal, human_bytes, human_seconds


def matrix_csv(entries: Sequence[Entry]) -> str:
    """Return a line per cell: its coordinates, its numbers, why it halted, and the accuracy of each client."""
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


def matrix_markdown(entries: Sequence[Entry], title: str) -> str:
    """Return the tables of each partition, with a row per attack and a column per defence."""
    seeds = sorted({entry.seed for entry in entries})
    told = ["accuracies are the mean ± the standard deviation over the seeds"] if len(seeds) > 1 else []
    told += ["a row's best is bold", "`-`: not known, or not defined"]
    if any(entry.aside - set(entry.result["adversaries"]) for entry in entries):
        told.append("who lies in some row is left out of all")
    if any(entry.lacking for entry in entries):
        told.append(f"`{MARK}`: not all clients were tested")
    lines = [f"# {printable(title)}", "", f"Seeds {', '.join(map(str, seeds))}; {'; '.join(told)}.", ""]
    for partition in names_of(entries, "partition"):
        cells = cells_of(entries, partition)
        whose = "Accuracy of the honest clients" if anybody_lies(entries) else "Accuracy of the clients"
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
    """Return a table without its empty rows and columns; no lines if all cells are empty."""
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
    """Return the defences with the best honest accuracy, as rounded for display, and no halted run."""
    means = {
        defence: round(mean, 3)
        for (name, defence), group in cells.items()
        if name == attack and (mean := mean_of(group)) is not None and not any(entry.halted for entry in group)
    }
    return {defence for defence, mean in means.items() if mean == max(means.values())} if len(means) > 1 else set()


def _honest(group: list[Entry]) -> str | None:
    text, halts = _spread(group, "accuracy_honest"), sum(entry.halted for entry in group)
    if text is None:
        return "halted" if halts else None
    text += MARK if any(entry.lacking for entry in group) else ""
    return f"{text} ({halts} halted)" if halts else text


def _spread(group: list[Entry], name: str, digits: int = 3) -> str | None:
    values = known_values(group, name)
    if not values:
        return None
    spread = f" ± {decimal(stdev(values), digits)}" if len(values) > 1 else ""
    return f"{decimal(fmean(values), digits)}{spread}"


def _removed(group: list[Entry]) -> str | None:
    liars, honest = (known_values(group, name) for name in ("adversaries_removed", "honest_removed"))
    return f"{f'{fmean(liars):.3g}' if liars else '-'} / {fmean(honest):.3g}" if honest else None


_TABLES: tuple[tuple[str, Callable[[list[Entry]], str | None]], ...] = (
    ("Adversaries removed / honest clients removed", _removed),
    ("Success of the attack at honest clients", lambda group: _spread(group, "attack_success")),
    ("Weight of the adversaries in the last round", lambda group: _spread(group, "adversaries_weight")),
    ("Accuracy that the adversaries obtain", lambda group: _spread(group, "accuracy_adversaries")),
    ("Collaborative fairness among the honest clients", lambda group: _spread(group, "fairness", 1)),
)
