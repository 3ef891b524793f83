"""`fedshare compare`: several runs with the same clients, side by side."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError, first_line, printable
from fedshare.experiments.beginnings import warn
from fedshare.experiments.headings import heading
from fedshare.machine.files import write_atomically
from fedshare.report.compare import (
    Run,
    comparison,
    comparison_csv,
    comparison_plot,
    everyone,
    last_evaluation,
    titles,
    unlike,
)
from fedshare.runs import RunFolder

DEALT = ("data", "partition", "train_examples", "seed")  # these determine which client has which examples


def compare(paths: list[str], into: str | None) -> None:
    """Print the table, and write all clients to `into`. Raises UserError if the runs' clients differ."""
    if len(paths) < 2:
        raise UserError(f"compare: takes two runs or more, not {len(paths)}")
    target = _target(into) if into else None
    folders = [RunFolder.open(path) for path in paths]
    homes = [folder.path.resolve() for folder in folders]
    for path, home in zip(paths, homes, strict=True):
        if homes.count(home) > 1:
            raise UserError(f"compare: {path} is named twice")
    configs = [_config(folder) for folder in folders]
    given = [str(config.get("name") or home.name) for config, home in zip(configs, homes, strict=True)]
    names = titles(given, [home.name for home in homes], paths)
    runs = [_last(folder, name, path) for folder, name, path in zip(folders, names, paths, strict=True)]
    for run, config in zip(runs[1:], configs[1:], strict=True):
        if difference := unlike(runs[0], run):
            raise UserError(f"compare: {difference}")
        if keys := [key for key in DEALT if config.get(key) != configs[0].get(key)]:
            warn(f"{paths[0]} and {run.place} differ in {', '.join(keys)}: a client's examples need not be the same")
    print(comparison(runs))
    if target:
        if target.suffix == ".csv":
            write_atomically(target, comparison_csv(runs))
        else:
            comparison_plot(runs, target, heading(configs, names))
        print(f"{into}: {len(everyone(runs))} clients")


def _target(into: str) -> Path:
    path = Path(into)
    if path.suffix not in (".csv", ".svg"):
        raise UserError(f"{into}: must end in .csv or .svg")
    if path.exists():
        raise UserError(f"{into}: is there already")
    return path


def _config(folder: RunFolder) -> DictConfig:
    """The config as stored: the run may be older than some keys."""
    try:
        config = OmegaConf.load(folder.config)
        if not isinstance(config, DictConfig):
            raise ValueError("it holds no keys")
    except Exception as error:
        raise UserError(f"{folder.config} is damaged: {first_line(error)}") from error
    return config


def _last(folder: RunFolder, name: str, path: str) -> Run:
    run = last_evaluation(folder.rows(), printable(name), path)
    if run is None:
        raise UserError(f"{path}: no client has been tested yet")
    return run
