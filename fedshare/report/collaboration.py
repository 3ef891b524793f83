"""A small SVG file of who collaborates with whom, for every strategy that reports it.

A row holds ``"overlap": {"clients": [0, 2], "values": [[1, 0.5], [0.5, 1]]}``, how much each pair of clients has in
common; ``"collaborators": {"0": [2], "2": []}``, of the participants of the round; and, over pairs of different
clients, ``"overlap_mean"`` and ``"overlap_max"``, with the ``"threshold"`` for collaboration. Any may be missing.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshare.report.plots import BLUE, GREEN, RED, enlarged, figure_at, heat_map, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Row = dict[str, Any]
LINES = (
    ("overlap_max", "largest", BLUE, "-"),
    ("overlap_mean", "mean", GREEN, "--"),
    ("threshold", "threshold", RED, "-"),
)
EMPTY = "#e9e9e9"  # for missing numbers: white would be read as the colour of 0


def collaboration_plot(rows: list[Row], path: Path | str) -> bool:
    """Draw the last round's overlap, overlap and threshold by round, each client's number of collaborators by round,
    and in how many rounds each pair collaborated.

    `rows` are those of ``metrics.jsonl``. Returns False, and writes no file, if no row reports collaboration.
    """
    alike = [row for row in rows if _overlap(row)]
    chosen = [row for row in rows if _collaborators(row)]
    panels = [
        (_matrix, alike[-1:]),
        (_lines, [row for row in alike if any(row.get(key) is not None for key, *_ in LINES)]),
        (_numbers, chosen),
        (_partners, chosen),
    ]
    panels = [(draw, some) for draw, some in panels if some]
    if not panels:
        return False
    down = math.ceil(len(panels) / 2)
    with figure_at(path, 9.6, 4.0 * down) as figure:
        grid = figure.subplots(down, 2, squeeze=False).flatten()
        for axes, (draw, some) in zip(grid, panels, strict=False):
            draw(figure, axes, some)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
    return True


def _overlap(row: Row) -> tuple[list[int], np.ndarray] | None:
    """Return the clients and the overlap of each pair; None if there are fewer than two clients."""
    match row.get("overlap"):
        case {"clients": [_, _, *_] as clients, "values": list(values)}:
            return clients, np.array(values, float)
    return None


def _collaborators(row: Row) -> dict[int, list[int]]:
    found = row.get("collaborators")
    if not isinstance(found, dict) or not all(isinstance(others, list) for others in found.values()):
        return {}
    return {int(client): others for client, others in found.items()}


def _matrix(figure: "Figure", axes: "Axes", rows: list[Row]) -> None:
    (row,) = rows
    clients, values = _overlap(row) or ([], np.empty((0, 0)))
    cells = np.ma.masked_invalid(values)
    cells[np.diag_indices(len(clients))] = np.ma.masked
    _field(figure, axes, cells, "overlap", clients)
    at = {client: position for position, client in enumerate(clients)}
    dots = np.zeros(cells.shape, bool)
    for client, others in _collaborators(row).items():
        for other in others:
            if client in at and other in at:
                dots[at[client], at[other]] = True
    if dots.any():
        _dots(axes, dots)
    axes.set_title(f"overlap in round {row['round']}; dots: they collaborate")


def _dots(axes: "Axes", where: np.ndarray) -> None:
    """Draw all dots as one image: with a hundred clients, separate marks would take a megabyte."""
    from matplotlib.colors import to_rgba_array

    mask = enlarged(where)
    side = len(mask) // len(where)
    off = (np.arange(len(mask)) % side + 0.5) / side - 0.5
    mask &= np.hypot(off[:, None], off) < 0.2
    picture = np.zeros((*mask.shape, 4), np.uint8)
    picture[mask] = to_rgba_array(RED) * 255
    axes.imshow(picture, aspect="auto", interpolation="none", extent=(*axes.get_xlim(), *axes.get_ylim()))


def _lines(figure: "Figure", axes: "Axes", rows: list[Row]) -> None:
    first, last = rows[0]["round"], rows[-1]["round"]
    marker = "o" if last - first < 30 else ""
    lines = {key: np.full(last - first + 1, math.nan) for key, *_ in LINES}
    for row in rows:
        for key, line in lines.items():
            line[row["round"] - first] = math.nan if row.get(key) is None else row[key]
    for key, label, colour, dash in LINES:
        style: Any = {"color": colour, "label": label, "linewidth": 1.6, "marker": marker, "markersize": 3}
        axes.plot(range(first, last + 1), lines[key], dash, **style)
    drawn = np.concatenate([lines["overlap_max"], lines["overlap_mean"]])
    if np.isfinite(drawn).any():  # an ever rising threshold would leave no room for the overlaps
        low, high = np.nanmin(drawn), np.nanmax(drawn)
        room = 0.15 * (high - low) or 0.05
        axes.set_ylim(low - room, high + 2 * room)
    axes.grid()
    axes.legend(loc="upper left", ncols=3, frameon=True, edgecolor="none")
    axes.set(title="overlap of two different clients", xlabel="round", ylabel="overlap")
    whole_numbers(axes.xaxis)


def _numbers(figure: "Figure", axes: "Axes", rows: list[Row]) -> None:
    clients = sorted({client for row in rows for client in _collaborators(row)})
    at = {client: position for position, client in enumerate(clients)}
    first = rows[0]["round"]
    cells = np.ma.masked_all((len(clients), rows[-1]["round"] - first + 1), int)
    for row in rows:
        for client, others in _collaborators(row).items():
            cells[at[client], row["round"] - first] = len(others)
    _field(figure, axes, cells, "collaborators", clients, left=first, vmin=0, vmax=max(1, cells.max()))
    axes.set(title="how many collaborators; grey: not in the round", xlabel="round")
    whole_numbers(axes.xaxis)


def _partners(figure: "Figure", axes: "Axes", rows: list[Row]) -> None:
    there = [
        set((_overlap(row) or ([], None))[0]).union(_collaborators(row), *_collaborators(row).values()) for row in rows
    ]
    clients = sorted(set().union(*there))
    at = {client: position for position, client in enumerate(clients)}
    counts = np.zeros((len(clients), len(clients)), int)
    met = np.zeros(counts.shape, bool)
    for row, others_there in zip(rows, there, strict=True):
        chosen = _collaborators(row)
        met[np.ix_([at[client] for client in chosen], [at[client] for client in others_there])] = True
        for client, others in chosen.items():
            counts[at[client], [at[other] for other in others]] += 1
    np.fill_diagonal(met, False)
    _field(figure, axes, np.ma.array(counts, mask=~met), "rounds", clients, vmin=0, vmax=max(1, counts.max()))
    axes.set_title("rounds of collaboration; grey: never met")


def _field(figure: "Figure", axes: "Axes", cells: np.ndarray, label: str, clients: list[int], **options: Any) -> None:
    """Draw a heat map with a row per client, and a column per client if it is square."""
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(EMPTY)
    bar = heat_map(figure, axes, cells, label, cmap="YlGnBu", **options)
    if cells.dtype == int:
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _by_client(axes.yaxis, clients)
    axes.set_ylabel("client")
    if "left" not in options:
        _by_client(axes.xaxis, clients)
        axes.set_xlabel("other client")
        if len(clients) > 10:
            axes.tick_params(axis="x", labelsize=7, rotation=90 if clients[-1] >= 100 else 0)


def _by_client(axis: "Axis", clients: list[int]) -> None:
    from matplotlib.ticker import FuncFormatter

    whole_numbers(axis, len(clients))
    axis.set_major_formatter(FuncFormatter(lambda at, _: str(clients[round(at)]) if 0 <= at < len(clients) else ""))
