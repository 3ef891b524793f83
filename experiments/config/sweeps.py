"""The jobs of a sweep, and whether its sweeper optimises."""

from collections.abc import Sequence

from hydra.types import RunMode

from fedshare.errors import UserError
from fedshare.experiments.config.application import App, divided, hydra, sweeps_alone
from fedshare.experiments.config.compose import composed
from fedshare.experiments.config.overrides import parse


def jobs(overrides: Sequence[str], name: str = "config", app: App | None = None) -> list[list[str]]:
    """Return the overrides of each job of a sweep, as hydra's own sweeper will run them.

    Other sweepers choose values as they go: then a single job stands for what all of them have in common.
    """
    app = app or hydra()
    settings = composed(app, name, overrides, RunMode.MULTIRUN).hydra
    params = [f"{key}={value}" for key, value in (settings.sweeper.get("params") or {}).items()]
    parsed = parse([*params, *settings.overrides.task], app)
    if not sweeps_alone(settings.sweeper):
        parsed = [override for override in parsed if not override.is_sweep_override()]
    batch = divided(parsed)
    if not batch:
        raise UserError("the sweep is empty: one of its globs or ranges holds nothing")
    return [[*settings.overrides.hydra, *job] for job in batch]


def selects(overrides: Sequence[str], name: str, app: App) -> list[str]:
    """Return the directions in which a sweeper optimises its jobs' values; empty if it does not."""
    sweeper = composed(app, name, overrides, RunMode.MULTIRUN).hydra.sweeper
    if sweeps_alone(sweeper):
        return []
    directions = sweeper.get("direction")
    return [
        str(part).rpartition(".")[2] for part in ([directions] if isinstance(directions, str) else directions or [""])
    ]
