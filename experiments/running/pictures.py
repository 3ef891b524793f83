"""What is shown of a run besides its rows: the line about its clients, and the plots in its folder."""

import json
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fedshare.data.partition import table
from fedshare.errors import UserError, first_line
from fedshare.experiments.headings import heading
from fedshare.machine.files import write_atomically
from fedshare.peers import Shape
from fedshare.report.collaboration import collaboration_plot
from fedshare.report.graph_plot import graph_plot
from fedshare.report.plots import partition_plot, progress_plot
from fedshare.runs import Row, RunFolder
from fedshare.simulation import Partitioned, Population


def graph_lines(shape: Shape, peers: int, chosen: int | None) -> str:
    """Return the description of the graph; and if only some peers are chosen for a round, how few links are used."""
    if chosen is None or chosen >= peers:
        return shape.line()
    used = 100 * chosen * (chosen - 1) / (peers * (peers - 1))
    some = f"{chosen} of {peers} peers take part in each round, so about {used:.2g} % of the links are used"
    return f"{shape.line()}\n{some}; clients_per_round=null: all"


def keep_graph(folder: RunFolder, shape: Shape) -> None:
    """Write the peers' graph. Raises UserError if the run began with another, from a file that has changed."""
    if not folder.graph.exists():
        write_atomically(folder.graph, json.dumps(vars(shape)) + "\n")
    elif _graph(folder)["links"] != shape.links:
        raise UserError(f"{folder.graph}: the run began with this graph, and the config makes another one now")


def _graph(folder: RunFolder) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(folder.graph.read_text())
        found["links"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.graph} is damaged: {first_line(error)}") from error
    return found


def draw_progress(folder: RunFolder, metric: str, config: DictConfig) -> tuple[list[Row], list[str]]:
    """Draw the plots; return the rows so far, and the names of the plots."""
    rows, drawn = folder.rows(), [f"{metric}.svg"]
    progress_plot(rows, folder.path / drawn[0], heading([config], [config.name]))
    if collaboration_plot(rows, folder.path / "collaboration.svg"):
        drawn.append("collaboration.svg")
    if folder.graph.exists() and graph_plot(_graph(folder), rows, folder.path / "graph.svg"):
        drawn.append("graph.svg")
    return rows, drawn


def draw_partition(population: Population, folder: RunFolder, name: str) -> None:
    parts = population.shares
    if isinstance(parts, Partitioned) and parts.dataset.labels is not None:
        counts = table(parts.split, parts.dataset.labels, parts.dataset.classes)
    else:  # sizes only, as a single class
        counts = np.array(population.sizes())[:, None]
    partition_plot(counts, folder.path / "partition.svg", title=f"{name}: training examples by client and class")


def population_line(population: Population) -> str:
    sizes = np.array([size for size in population.sizes() if size] or [0])  # of known sizes
    scratch = population.scratch
    parameters, shared = (
        sum(scratch.shapes[name].numel() for name in names) for names in (scratch.shapes, scratch.shared)
    )
    part = f", {shared:,} of them shared" if shared != parameters else ""
    return (
        f"{len(population.shares)} clients with {sizes.min()} to {sizes.max()} examples "
        f"(median {np.median(sizes):g}) · {parameters:,} parameters{part}"
    )
