"""hydra's application on our configs: the only module that uses hydra's internals."""

from pathlib import Path
from typing import Any, TypeAlias

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError, first_line
from fedshare.experiments.config.own import importable
from fedshare.experiments.config.schema import register

App: TypeAlias = Hydra  # hydra's application, not used directly elsewhere
CONF = Path(__file__).parents[1] / "conf"


def hydra(directory: str | None = None) -> App:
    """Return hydra on our configs and those in `directory`, whose modules become importable."""
    version.setbase("1.3")
    register()
    OmegaConf.register_new_resolver("by", _by, replace=True)
    path = create_config_search_path(str(CONF.absolute()))
    importable(directory)
    if directory is not None:
        path.prepend("command-line", f"file://{Path(directory).absolute()}", SearchPathQuery(provider="schema"))
    return Hydra(task_name="run", config_loader=ConfigLoaderImpl(path))


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
