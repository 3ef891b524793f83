"""`fedshare run`: hydra's command line in front of `execute`."""

import contextlib
import itertools
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedshare.errors import DiskError, RunHalted, UserError, first_line, of_the_disk
from fedshare.experiments.config import application, build, checks, compose, sweeps
from fedshare.experiments.config.application import App
from fedshare.experiments.config.instantiate import make
from fedshare.experiments.config.own import add_config_dir
from fedshare.experiments.config.settle import settle
from fedshare.experiments.options import Parser
from fedshare.experiments.running.execute import execute
from fedshare.experiments.tracking import Tracker
from fedshare.report.best import Best
from fedshare.simulation.cluster import Cluster
from fedshare.tasks import Task


@dataclass(frozen=True)
class Work:
    """The functions that a command applies to a config."""

    command: str
    build: Callable[[DictConfig], Any]  # builds what `execute` needs, before the folder is created
    check: Callable[[DictConfig, set[str]], None]  # like `checks.check`, for one job of a sweep
    execute: Callable[[DictConfig, Path, str | None, Any], Best | None]  # takes what was built; None: it builds itself


def _build(config: DictConfig) -> Any:
    make(config.tracking, "tracking", Tracker)
    make(config.cluster, "cluster", Cluster).places()
    return build.simulated(config)


RUN = Work("run", _build, checks.check, execute)
# For null values in a launcher's processes, because the launcher decides how many of them there are.
_ALONE = {"workers": 0, "threads": 1}


def run(arguments: list[str], name: str = "config", work: Work = RUN) -> None:
    """Run with `arguments`, hydra's overrides and flags: ``data=mnist -m seed=0,1 --cfg job``."""
    parser = _parser(work.command, name)
    flags = parser.parse_intermixed_args(arguments)
    if (flags.resolve or flags.package) and not flags.cfg:
        parser.error("--resolve and --package go with --cfg")
    app, name, overrides = application.hydra(flags.config_dir), flags.config_name, flags.overrides
    sweep = flags.multirun or app.get_mode(name, overrides) is RunMode.MULTIRUN
    try:
        if flags.help or flags.hydra_help or flags.cfg or flags.info:
            compose.resolved(overrides, name, app)
        if flags.help:
            app.app_help(name, parser, flags)
        elif flags.hydra_help:
            app.hydra_help(name, parser, flags)
        elif flags.cfg:
            app.show_cfg(name, overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            app.show_info(flags.info, name, overrides)
        elif sweep:
            _sweep(work, app, name, [*overrides, application.SWEEP])
        else:
            _single(work, app, name, [*overrides, application.SINGLE])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from error


def _parser(command: str, name: str) -> Parser:
    parser = Parser(prog=f"fedshare {command}", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "overrides", nargs="*", help="GROUP=OPTION and KEY=VALUE; +KEY=VALUE adds a key, ~KEY removes one"
    )
    does = parser.add_mutually_exclusive_group()
    does.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: one run for each combination of values a,b"
    )
    does.add_argument("-c", "--cfg", choices=("job", "hydra", "all"), help="show the config: job, hydra or all")
    info = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    does.add_argument("-i", "--info", nargs="?", const="all", choices=info, help=f"show {', '.join(info)}")
    does.add_argument("-h", "--help", action="store_true", help="show this help")
    does.add_argument("--hydra-help", action="store_true", help="show hydra's own flags and groups")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve references to other keys")
    parser.add_argument("-p", "--package", help="with --cfg: show only this part")
    parser.add_argument(
        "-cn", "--config-name", default=name, help="a preset, or a root config of your own in --config-dir"
    )
    add_config_dir(parser)
    return parser


def _single(work: Work, app: App, name: str, overrides: list[str]) -> None:
    """Build before hydra creates a folder, and run what was built."""
    config = compose.resolved(overrides, name, app)
    built = (config, work.build(config))
    error = app.run(name, partial(_job, work, built), overrides).return_value
    if isinstance(error, Exception):
        raise error


def _sweep(work: Work, app: App, name: str, overrides: list[str]) -> None:
    jobs = sweeps.jobs(overrides, name, app)
    same, seen = set.intersection(*map(set, jobs)), set[str]()
    selects = sweeps.selects(overrides, name, app)
    for number, job in enumerate(jobs):
        try:
            config = compose.resolved(job, name, app)
            work.check(config, seen)
            if selects:
                _check_objective(config, selects)
        except UserError as error:
            raise UserError(f"{error} (job {number}: {' '.join(o for o in job if o not in same)})") from error
    batches: list[list[JobReturn]] = app.multirun(name, partial(_job, work, None), overrides) or []
    results = [result for batch in batches for result in batch]
    failures = [result.return_value for result in results if isinstance(result.return_value, Exception)]
    if failures:
        halted = any(isinstance(failure, RunHalted | DiskError) or of_the_disk(failure) for failure in failures)
        raise (RunHalted if halted else UserError)(f"{len(failures)} of {len(results)} jobs failed")


def _check_objective(config: DictConfig, directions: list[str]) -> None:
    """Raise UserError if the sweeper optimises the jobs' values and they would have none."""
    if not config.get("validation"):
        raise UserError("the sweeper selects by validation examples, and never by the test's: add validation=0.1")
    task: Task = make(config.task, "task", Task)
    metric = config.best or task.compared
    better = task.directions().get(metric)
    wanted = {"higher": "maximize", "lower": "minimize"}.get(str(better))
    if directions != [wanted]:
        raise UserError(f"hydra.sweeper.direction={','.join(directions)}: {metric} is better {better}: {wanted}")


def _unclaimed(path: Path) -> Path:
    """Return `path`, or the first of path-2, path-3, ... not taken by another run of the same second."""
    for name in itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2))):
        path = path.with_name(name)
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (path / ".lock").open("x").close()
            break
    return path


def _job(work: Work, built: tuple[DictConfig, Any] | None, whole: DictConfig) -> Exception | float | None:
    """Return the best value on validation examples, if any, for a sweeper that optimises.

    An exception is returned, because hydra would print more than one line. It may run in a launcher's process.
    """
    settings = HydraConfig.get()
    here, folder = Path.cwd(), Path(settings.runtime.output_dir)
    path = folder.relative_to(here) if here in folder.parents else folder
    if OmegaConf.is_missing(whole, "folder"):
        path = _unclaimed(path)
    config, made = built or (settle(whole), None)
    sweep = None
    if settings.mode is RunMode.MULTIRUN:
        sweep = str(settings.sweep.dir)
        print(f"\njob {settings.job.num}: {' '.join(settings.overrides.task)}", flush=True)
        if multiprocessing.parent_process():
            for key in _ALONE.keys() & config.keys():
                config[key] = _ALONE[key] if config[key] is None else config[key]
    try:
        best = work.execute(config, path, sweep, made)
    except (UserError, OSError) as error:
        if sweep:
            print(f"fedshare: job {settings.job.num}: {error}", file=sys.stderr)
        return error
    return best.value if best and best.round else None
