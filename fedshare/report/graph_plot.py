"""The graph of peers that have no server, as a small SVG file: who is how good, and what each link has carried."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshare.report.plots import BLUE, GREY, figure_at, whole_numbers
from fedshare.report.rows import evaluations, headline
from fedshare.report.units import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
MOST_LINKS = 10_000  # that are drawn
MOST_NAMED = 64  # peers


def graph_plot(graph: dict[str, Any], rows: list[Row], path: Path | str) -> bool:
    """Draw the peers in the colour of their last test, their links as wide as they were used, and the consensus.

    `graph` has the `links` and `places` of `fedshare.peers.Shape`, `rows` are those of ``metrics.jsonl``. Returns
    False, and writes no file, if the links change by round.
    """
    if graph["links"] is None or graph["places"] is None:
        return False
    apart = [row for row in rows if row.get("consensus") is not None]
    with figure_at(path, 9.6 if apart else 5.6, 4.6) as figure:
        left, *right = figure.subplots(1, 1 + bool(apart), squeeze=False, width_ratios=[1.3, 1][: 1 + bool(apart)])[0]
        _graph(figure, left, graph, rows)
        for axes in right:
            _consensus(axes, apart)
    return True


def link_bytes(links: list[list[int]], rows: list[Row]) -> dict[tuple[int, int], int]:
    """Return the bytes that went over each link of two peers, both ways, the lower peer first."""
    receivers, sent = Counter(sender for senders in links for sender in senders), Counter[int]()
    for row in rows:
        sent.update({int(peer): size for peer, size in row.get("bytes_by_peer", {}).items()})
    found = Counter[tuple[int, int]]()
    for peer, senders in enumerate(links):
        for sender in senders:
            found[min(peer, sender), max(peer, sender)] += sent[sender] // receivers[sender]
    return dict(sorted(found.items()))


def _graph(figure: "Figure", axes: "Axes", graph: dict[str, Any], rows: list[Row]) -> None:
    from matplotlib.collections import LineCollection

    places, used, name = np.array(graph["places"]), link_bytes(graph["links"], rows), headline(rows)
    most = max(used.values(), default=0)
    title = f"{graph['graph']}; up to {human_bytes(most)} over a link"
    if len(used) <= MOST_LINKS:
        widths = [0.4 + 2.2 * size / max(1, most) for size in used.values()]
        ends: Any = places[list(used)]
        axes.add_collection(LineCollection(ends, linewidths=widths, colors=GREY, alpha=0.6, zorder=1))
    else:
        title += f"; {len(used):,} links, not drawn"
    tests = evaluations(rows)
    scores = tests[-1].get("per_client", {}).get(name, {}) if tests else {}
    values = np.array([np.nan if (value := scores.get(str(peer))) is None else value for peer in range(len(places))])
    size = min(220.0, 5_000 / len(places))  # points squared: dots in a circle do not overlap up to 100
    across, up = places.T
    tested = ~np.isnan(values)
    axes.scatter(across[~tested], up[~tested], s=size, color="white", edgecolors=GREY, linewidths=0.8, zorder=2)
    if tested.any():
        dots = axes.scatter(
            across[tested], up[tested], s=size, c=values[tested], cmap="cividis", linewidths=0, zorder=2
        )
        bar = figure.colorbar(dots, ax=axes, label=f"test {name}", pad=0.02, fraction=0.05, aspect=20)
        bar.outline.set_visible(False)
    if len(places) <= MOST_NAMED:
        middle = values[tested].mean() if tested.any() else 0.0
        for peer, (x, y) in enumerate(places):
            dark = tested[peer] and values[peer] < middle
            axes.text(x, y, str(peer), ha="center", va="center", size=7, color="white" if dark else "black", zorder=3)
    axes.set(title=title, aspect="equal", xticks=[], yticks=[])
    axes.margins(0.08)
    axes.spines[:].set_visible(False)


def _consensus(axes: "Axes", rows: list[Row]) -> None:
    marker = "o" if len(rows) <= 30 else ""
    rounds, apart = [row["round"] for row in rows], [row["consensus"] for row in rows]
    axes.plot(rounds, apart, color=BLUE, linewidth=1.6, marker=marker, markersize=3)
    axes.set(title="distance from the average model", xlabel="round", ylabel="root mean square over peers")
    axes.set_ylim(bottom=0)
    axes.grid()
    whole_numbers(axes.xaxis)
