"""The plots of a run, as small SVG files: the same input gives the same bytes."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshare.machine.files import write_atomically
from fedshare.report.rows import among, headline, share
from fedshare.report.units import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

BLUE, RED, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#333333", "#8a8a8a"  # Okabe and Ito: safe for all eyes
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: a fifth of the size, and searchable
    "svg.hashsalt": "fedshare",
    "text.parse_math": False,  # a dollar in a title is a dollar
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
MOST_BUBBLES = 40  # clients or classes; beyond, a heat map is easier to read
MOST_NAMED = 100  # clients; beyond, their order shows more than their numbers


def partition_plot(counts: np.ndarray, path: Path | str, title: str = "") -> None:
    """Draw how many examples of each class each client holds, and above it each client's total.

    `counts` is ``[clients, classes]``, whole numbers. Beyond a hundred, clients are sorted by their largest class, so
    that a skew shows as a staircase and its absence as an even field.
    """
    counts = np.asarray(counts)
    clients, classes = counts.shape
    width = 2.2 + min(8.0, max(3.0, 0.22 * clients))
    height = 1.6 + min(6.0, max(1.5, 0.22 * classes))
    if sort := clients > MOST_NAMED:
        counts = counts[np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))]
    with figure_at(path, width, height) as figure:
        above, middle = figure.subplots(2, 1, sharex=True, height_ratios=[0.7, height - 1.6])
        if clients <= MOST_BUBBLES:
            above.bar(np.arange(clients), counts.sum(axis=1), width=0.7, color=GREY)
        else:  # one outline: a path per bar would be most of the file for a thousand bars
            above.stairs(counts.sum(axis=1), np.arange(clients + 1) - 0.5, fill=True, color=GREY)
        above.set(title=title, ylabel="examples", ylim=(0, None))
        above.grid(axis="y")
        above.tick_params(bottom=False)
        above.locator_params(axis="y", nbins=3)
        if max(clients, classes) <= MOST_BUBBLES:
            _bubbles(middle, counts)
        else:
            _heat(figure, middle, counts)
        middle.set(xlabel="clients, sorted by their largest class" if sort else "client", ylabel="class")
        middle.set(xlim=(-0.5, clients - 0.5), ylim=(classes - 0.5, -0.5))
        whole_numbers(middle.xaxis, clients)
        whole_numbers(middle.yaxis, classes)
        figure.align_ylabels()


def _bubbles(axes: "Axes", counts: np.ndarray) -> None:
    """Draw one bubble per client and class, its area proportional to the count."""
    client, label = np.nonzero(counts)
    most = max(1, int(counts.max(initial=0)))

    def steps(examples: Any) -> Any:
        """Diameters in half points: few distinct sizes keep the file small, and the smallest bubble stays visible."""
        return np.maximum(3, np.ceil(26 * np.sqrt(examples / most)))

    axes.grid()
    bubbles = steps(counts[client, label])
    for size in np.unique(bubbles):
        here = bubbles == size
        axes.plot(client[here], label[here], "o", markersize=size / 2, color=BLUE, markeredgewidth=0)
    for examples in _examples_of_sizes(most):
        axes.plot([], [], "o", markersize=steps(examples) / 2, color=BLUE, markeredgewidth=0, label=f"{examples:,}")
    axes.legend(title="examples", loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.9, alignment="left")


def _examples_of_sizes(most: int) -> list[int]:
    """Return up to three round numbers for a legend, the largest near `most`."""
    scale = 10 ** math.floor(math.log10(most))
    top = next(step for step in (5, 2, 1) if step * scale <= most) * scale
    return sorted({number for number in (top, top // 5, top // 25) if number}, reverse=True)


def _heat(figure: "Figure", axes: "Axes", counts: np.ndarray) -> None:
    """Draw one cell per client and class; the colours follow the square root, so that small counts are visible."""
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.5, vmin=0, vmax=max(1, int(counts.max(initial=0))))
    heat_map(figure, axes, np.ma.masked_equal(counts.T, 0), label="examples", cmap="YlGnBu", norm=norm)


def heat_map(
    figure: "Figure", axes: "Axes", cells: np.ndarray, label: str, left: int = 0, **colours: Any
) -> "Colorbar":
    """Draw `cells`, ``[rows, columns]``, centred at whole numbers, columns from `left`; masked cells stay empty."""
    rows, columns = cells.shape
    extent = (left - 0.5, left + columns - 0.5, rows - 0.5, -0.5)
    image = axes.imshow(enlarged(cells), aspect="auto", interpolation="none", extent=extent, **colours)
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.02, fraction=0.05, aspect=20)
    bar.outline.set_visible(False)
    return bar


def enlarged(cells: np.ndarray) -> np.ndarray:
    """Repeat each cell as several pixels: many viewers smooth the borders between pixels."""
    down, across = (max(1, math.ceil(1600 / count)) for count in cells.shape)
    return cells.repeat(down, axis=0).repeat(across, axis=1)


def progress_plot(rows: list[dict[str, Any]], path: Path | str, title: str = "") -> None:
    """Draw the headline metric by round (over all examples, worst tenth, spread among clients) and cumulative bytes.

    `rows` are those of ``metrics.jsonl``; a round without evaluation has no point. Lines are interrupted where the set
    of tested clients changes; tests of only some clients have hollow marks.
    """
    with figure_at(path, 7.0, 4.8) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
        name = headline(rows)
        evaluated = [row for row in rows if row.get(name) is not None]
        evaluated = [row | {f"{name}_average": row.get("average", {}).get(name)} for row in evaluated]
        _metric(above, evaluated, name)
        above.set_title(title)
        _traffic(below, rows)
        below.set(xlabel="round", xlim=(0, 1.02 * max([1, *(row["round"] for row in rows)])))
        whole_numbers(below.xaxis)
        for axes in (above, below):
            axes.grid()
        figure.align_ylabels()


def _metric(axes: "Axes", rows: list[dict[str, Any]], name: str) -> None:
    axes.set_ylabel(f"test {name}")
    if not rows:
        axes.text(0.5, 0.5, "no evaluation yet", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])
        return
    parts = _alike(rows)
    for number, part in enumerate(parts):
        spread = [(row["round"], *_spread(row, name)) for row in part if row.get("per_client", {}).get(name)]
        if spread:
            at, low, high = zip(*spread, strict=True)
            label = "_" if number else "middle 80 % of clients"  # not in the legend
            axes.fill_between(at, low, high, color=BLUE, alpha=0.15, linewidth=0, label=label)
    lines: list[tuple[str, str, str, dict[str, Any]]] = [
        (name, "all examples", BLUE, {"linewidth": 3.2, "alpha": 0.45}),  # wide: visible below another line
        (f"{name}_mean", "mean of clients", GREEN, {"linewidth": 1.6, "dashes": (5, 2.5)}),
        (f"{name}_worst10", "worst 10 % of clients", RED, {"linewidth": 1.3, "dashes": (1.5, 1.5)}),
        *[(f"{name}_average", "average model", INK, {"linewidth": 1.0})] * any("average" in row for row in rows),
    ]
    for key, label, colour, line in lines:
        for number, part in enumerate(parts):
            values = [math.nan if row.get(key) is None else row[key] for row in part]
            whole, few = not share(part[0]), len(rows) <= 30 or len(part) == 1
            marks: Any = {"marker": "o" if few or not whole else "", "markersize": 3 if whole else 5}
            marks |= {} if whole else {"markerfacecolor": "none"}
            rounds = [row["round"] for row in part]
            axes.plot(rounds, values, color=colour, label="_" if number else label, **line, **marks)
    if any(share(row) for row in rows):
        hollow: Any = {"marker": "o", "markersize": 5, "markerfacecolor": "none", "linestyle": "", "color": GREY}
        axes.plot([], [], label="not all clients tested", **hollow)
    if len(parts) > 1:
        axes.plot([], [], linestyle="", label="gap: over other clients")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _alike(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split the rows where the set of tested clients changes."""
    return [list(part) for _, part in itertools.groupby(rows, among)]


def _spread(row: dict[str, Any], name: str) -> tuple[float, float]:
    values = [math.nan if value is None else value for value in row["per_client"][name].values()]
    low, high = np.quantile(values, [0.1, 0.9])
    return float(low), float(high)


def _traffic(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rounds = [rows[0]["round"] - 1, *(row["round"] for row in rows)] if rows else []
    most = 1.0
    for key, label, colour, dash in (("bytes_up", "upload", RED, "-"), ("bytes_down", "download", BLUE, "--")):
        sent = np.cumsum([0, *(row.get(key, 0) for row in rows)])[: len(rounds)]
        axes.plot(rounds, sent, dash, color=colour, label=label, linewidth=1.6)
        most = max([most, *sent])
    axes.set(ylabel="bytes so far", ylim=(0, 1.05 * most))
    axes.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value).replace(".0 ", " ")))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def whole_numbers(axis: "Axis", count: int | None = None) -> None:
    """Put ticks at whole numbers: at each of `count` if there are few."""
    from matplotlib.ticker import MaxNLocator

    if count is not None and count <= 20:
        axis.set_ticks(range(count))
    else:
        axis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


@contextmanager
def figure_at(path: Path | str, width: float, height: float) -> Iterator["Figure"]:
    """Yield a figure of this size in inches; write it to `path` atomically when the block ends."""
    import matplotlib  # takes 0.3 s, which a run without plots need not spend
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        yield figure
        picture = BytesIO()
        # the bytes of `savefig`, which draws a constrained layout twice
        canvas.print_svg(picture, metadata={"Date": None, "Creator": None})
    write_atomically(Path(path), picture.getvalue())
