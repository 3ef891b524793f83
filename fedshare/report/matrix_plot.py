"""The matrix as heat maps of the honest clients' accuracy."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshare.errors import printable
from fedshare.report.cells import Entry, anybody_lies, cells_of, mean_of, names_of
from fedshare.report.plots import INK, figure_at, heat_map
from fedshare.report.rows import MARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = "cividis"  # works for colour-blind readers and in greyscale
DARK = 0.55  # below it, text is white


def matrix_plot(entries: Sequence[Entry], path: Path | str) -> None:
    """Draw honest accuracy, a panel per partition, a row per attack, a column per defence; halts hatched."""
    attacks, defences, partitions = (names_of(entries, axis) for axis in ("attack", "defence", "partition"))
    width, height = 2.6 + 0.58 * max(4, len(defences)), 1.3 + 0.28 * max(3, len(attacks))
    with figure_at(path, width, height * len(partitions)) as figure:
        for axes, partition in zip(figure.subplots(len(partitions), 1, squeeze=False).flat, partitions, strict=True):
            cells = cells_of(entries, partition)
            means = np.array(
                [[mean_of(cells.get((a, d), [])) for d in defences] for a in attacks], dtype=float
            )  # None becomes NaN
            label = "accuracy\nof the honest" if anybody_lies(entries) else "accuracy"
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
