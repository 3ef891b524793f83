"""What is shown of a run besides its rows: the line about its clients, and the plots in its folder."""

import numpy as np
from omegaconf import DictConfig

from fedshare.data.partition import table
from fedshare.experiments.headings import heading
from fedshare.report.collaboration import collaboration_plot
from fedshare.report.plots import partition_plot, progress_plot
from fedshare.runs import Row, RunFolder
from fedshare.simulation import Partitioned, Population


def draw_progress(folder: RunFolder, metric: str, config: DictConfig) -> tuple[list[Row], bool]:
    """Draw the plots; return the rows so far, and whether they report collaboration."""
    rows = folder.rows()
    progress_plot(rows, folder.path / f"{metric}.svg", heading([config], [config.name]))
    return rows, collaboration_plot(rows, folder.path / "collaboration.svg")


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
