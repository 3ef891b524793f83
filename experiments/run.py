"""`fedshare run`: hydra's command line in front of `execute`."""

import argparse
import os
import sys
from pathlib import Path
from unittest import mock

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fedshare.errors import UserError
from fedshare.simulation import Population

from . import build, compose
from .config import register
from .execute import execute
from .instantiate import make


def run(arguments: list[str]) -> None:
    """`arguments` are hydra's overrides and flags: ``data=mnist -m seed=0,1 --cfg job``."""
    options, overrides = _options(arguments)
    checked: list[tuple[DictConfig, Population]] = []
    failures: list[UserError] = []
    here = os.getpid()
    if options.shows in ("job", "all"):
        compose.resolved(overrides, options.config_name)
    elif not options.shows:
        checked = _check(overrides, options.config_name, options.multirun)

    def job(whole: DictConfig) -> None:
        config = compose.settle(whole)
        settings = HydraConfig.get()
        sweep = str(settings.sweep.dir) if settings.mode == RunMode.MULTIRUN else None
        if sweep:
            print(f"\njob {settings.job.num}: {' '.join(settings.overrides.task)}", flush=True)
        population = next((built for config_of, built in checked if config_of == config), None)
        try:
            execute(config, _short(Path(settings.runtime.output_dir)), sweep, population)
        except UserError as error:
            if os.getpid() != here:  # a launcher's own process: hydra brings the error back
                raise
            failures.append(error)  # hydra would say more than one line
            if sweep:
                print(f"fedshare: job {settings.job.num}: {error}", file=sys.stderr)

    register()
    start = hydra.main(version_base="1.3", config_path=str(compose.CONF.absolute()), config_name="config")(job)
    with (
        mock.patch.object(sys, "argv", ["fedshare run", *arguments]),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="1"),
    ):
        start()  # with this variable, errors come through as they are
    if failures:
        raise failures[0]


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Those of hydra's flags that say which config is meant, and the overrides."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cn", "--config-name", default="config")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-c", "--cfg", dest="shows")
    parser.add_argument("-i", "--info", dest="shows", nargs="?", const="all")
    parser.add_argument("-h", "--help", "--hydra-help", dest="shows", action="store_const", const="help")
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("overrides", nargs="*")
    try:
        options, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if flags := [argument for argument in unknown if argument.startswith("-")]:
        raise UserError(f"{flags[0]}: no such flag; see fedshare run --hydra-help")
    overrides = [*options.overrides, *unknown]
    if options.config_dir:
        overrides.append(f"hydra.searchpath=[file://{Path(options.config_dir).absolute()}]")
    return options, overrides


def _check(overrides: list[str], config_name: str, sweep: bool) -> list[tuple[DictConfig, Population]]:
    """Find what is wrong before hydra makes a folder. A single run is built whole, and the building kept."""
    if sweep:
        for job in compose.jobs(overrides):
            compose.resolved(job, config_name)
        return []
    if swept := [override.input_line for override in compose.parse(overrides) if override.is_sweep_override()]:
        raise UserError(f"{swept[0]}: several values make a sweep: add -m")
    config = compose.resolved(overrides, config_name)
    make(config.tracking, "tracking")
    return [(config, build.population_of(config))]
