"""hydra's application on our configs: the only module that uses hydra's internals."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError, first_line
from fedshare.experiments.config.own import importable
from fedshare.experiments.config.schema import register

CONF = Path(__file__).parents[1] / "conf"
HELD = 6  # configs
SINGLE, SWEEP = "hydra.mode=RUN", "hydra.mode=MULTIRUN"  # the overrides by which hydra runs one job, or several


class _Loader(ConfigLoaderImpl):
    """Holds the configs that were composed last, because a job's is asked for to check it and again to run it.

    Or it holds why one cannot be composed, which is asked for again to explain it.
    """

    def __init__(self, path: ConfigSearchPath) -> None:
        super().__init__(path)
        self._held: dict[tuple[Any, ...], DictConfig | Exception] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": {}}  # a launcher's processes need none of it, and not all errors can be pickled

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        asked = (config_name, tuple(overrides), run_mode, validate_sweep_overrides, os.getcwd())
        if asked not in self._held:
            found: DictConfig | Exception
            try:
                found = super().load_configuration(
                    config_name, overrides, run_mode, from_shell, validate_sweep_overrides
                )
            except Exception as error:  # hydra and OmegaConf raise many types
                found = error
            self._hold(asked, found)
        held = self._held[asked]
        if isinstance(held, Exception):
            raise held
        return deepcopy(held)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        if config_name or overrides:
            return super().get_group_options(group_name, results_filter, config_name, overrides)
        return self.repository.get_group_options(group_name, results_filter)  # hydra copies it for each group

    def hold(self, config_name: str | None, overrides: list[str], held: DictConfig | Exception) -> None:
        """Hold what comes of these overrides for a single run."""
        self._hold((config_name, tuple(overrides), RunMode.RUN, True, os.getcwd()), held)

    def _hold(self, asked: tuple[Any, ...], held: DictConfig | Exception) -> None:
        self._held = dict([*self._held.items(), (asked, held)][-HELD:])


class App(Hydra):
    """Hydra's application, not used directly elsewhere."""

    config_loader: _Loader

    def get_mode(self, config_name: str | None, overrides: list[str]) -> Any:
        """As hydra's, and hold what comes of SINGLE beside these overrides."""
        single = [*overrides, SINGLE]
        try:
            config = self.compose_config(config_name, overrides, RunMode.RUN)
        except Exception as error:  # hydra and OmegaConf raise many types
            mode = super().get_mode(config_name, overrides)  # perhaps they are those of a sweep
            self.config_loader.hold(config_name, single, error)
            return mode
        if "mode" not in config.hydra:
            return None
        mode, config.hydra.mode = config.hydra.mode, RunMode.RUN
        config.hydra.overrides.hydra.append(SINGLE)
        self.config_loader.hold(config_name, single, config)
        return mode


def hydra(directory: str | None = None) -> App:
    """Return hydra on our configs and those in `directory`, whose modules become importable."""
    version.setbase("1.3")
    register()
    OmegaConf.register_new_resolver("by", _by, replace=True)
    path = create_config_search_path(str(CONF.absolute()))
    importable(directory)
    if directory is not None:
        path.prepend("command-line", f"file://{Path(directory).absolute()}", SearchPathQuery(provider="schema"))
    return App(task_name="run", config_loader=_Loader(path))


def _by(choice: str, values: DictConfig) -> Any:
    """``${by:CHOICE,{a: 1, b: 2}}``: a value that depends on the option chosen in another group."""
    if choice not in values:
        raise ValueError(f"no value is known for {choice}, only for {', '.join(map(str, values))}: give one")
    return values[choice]


def sweeps_alone(sweeper: DictConfig) -> bool:
    """Whether it is hydra's own sweeper, which knows all jobs before the first one runs."""
    return bool(sweeper._target_ == BasicSweeperConf._target_)


def divided(overrides: list[Override]) -> list[list[str]]:
    """Return the overrides of each job, as hydra's own sweeper expands them. Raises UserError."""
    try:
        batch, *_ = BasicSweeper.split_arguments(overrides, None)
    except HydraException as error:
        raise UserError(first_line(error)) from error
    return [list(job) for job in batch]
