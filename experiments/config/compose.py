"""From overrides to resolved configs. Errors are reported in one line, before anything is created."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError, first_line
from fedshare.experiments.config.application import SINGLE, SWEEP, App, hydra
from fedshare.experiments.config.explain import explain
from fedshare.experiments.config.overrides import parse
from fedshare.experiments.config.settle import settle


def resolved(overrides: Sequence[str], name: str = "config", app: App | None = None) -> DictConfig:
    """Return the config of one job, without hydra's own part. Raises UserError."""
    whole = composed(app or _ours(), name, overrides, RunMode.RUN)
    with _current(whole):
        return settle(whole)


def seeded(overrides: Sequence[str], seeds: Sequence[int], app: App | None = None) -> list[DictConfig]:
    """Return the config for each seed: hydra composes only once, because that is slow."""
    whole = composed(app or _ours(), "config", overrides, RunMode.RUN)
    configs = []
    with _current(whole):
        for seed in seeds:
            whole.seed = seed
            configs.append(settle(whole))
    return configs


@cache
def _ours() -> App:
    """One application, which holds the config that it composed last: apps of Flower ask for theirs several times."""
    return hydra()


@contextmanager
def _current(whole: DictConfig) -> Iterator[None]:
    """Inside the block, references to hydra's own part resolve to that of `whole`."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def folder(overrides: Sequence[str], name: str = "config", app: App | None = None) -> str | None:
    """Return the folder set by the overrides, if any."""
    whole = composed(app or _ours(), name, overrides, RunMode.RUN)
    return None if OmegaConf.is_missing(whole, "folder") else str(whole.folder)


def composed(app: App, name: str, overrides: Sequence[str], mode: RunMode) -> DictConfig:
    """Return the whole config, including hydra's own part. Raises UserError."""
    parsed = parse(overrides, app)
    try:
        return app.compose_config(name, list(overrides), mode, from_shell=False)
    except Exception as error:  # hydra and OmegaConf raise many types
        own = [override for override in parsed if override.input_line not in (SINGLE, SWEEP)]  # those always fit
        raise UserError(explain(app, name, own, mode) or first_line(error)) from error
