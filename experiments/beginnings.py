"""The start of a run: its versions and their random streams, and the initial model in its folder."""

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import fedshare
from fedshare import seeds
from fedshare.errors import UserError
from fedshare.experiments.config import build
from fedshare.runs import RunFolder, initial_flaw
from fedshare.simulation import Population

_STREAMS = (0, 2)  # the version that introduced the current random streams


def create(folder: RunFolder, config: DictConfig, population: Population | None = None) -> None:
    text, made_with = OmegaConf.to_yaml(config), versions()
    if population is None:
        folder.create(text, made_with, sealed=False)  # it seals no rows
    else:
        folder.create(text, made_with | {"model": population.scratch.fingerprint}, population.drawn())
    if not folder.is_ours(text):
        warn(f"{folder.path}: no key could be had to mark it as this user's; --trust allows it modules of your own")


def begin(folder: RunFolder, population: Population, config: DictConfig) -> None:
    """Start all clients from the run's initial model. Raises UserError if that is no longer available."""
    if wrong := initial_flaw(folder):
        raise UserError(f"{folder.path}: {wrong}")
    if folder.initial.exists():
        build.begin(population, folder.initial)
    if folder.made_with().get("model", population.scratch.fingerprint) != population.scratch.fingerprint:
        raise UserError(f"{folder.path}: began with another model: {why_another(folder, config)}")


def why_another(folder: RunFolder, config: DictConfig) -> str:
    """Return why the config makes another model now than it did then."""
    if config.weights is not None:
        return f"other weights lie at weights={config.weights} now"
    made, now = folder.made_with().get("torch"), versions()["torch"]
    if made not in (None, now):
        return f"torch was {made} then, and is {now}"
    kind = "" if folder.initial.exists() else "this is another kind of processor, or "
    return f"{kind}the config or the model's code has changed"


STILL = "verify, compare, ledger, replay, undo and export still read it"


def check_streams(folder: RunFolder, still: str = STILL) -> None:
    """Raise UserError if the run used other random streams, so that it cannot be resumed.

    `still` says what can still be done with it.
    """
    if made := _older(folder):
        raise _others(folder.path, made, still)


def check_made(place: Path, made: str | None, still: str) -> None:
    """The same check for what lies at `place`, by the version of fedshare that made it; None: unknown."""
    if made := _before(made):
        raise _others(place, made, still)


def _others(place: Path, made: str, still: str) -> UserError:
    others = f"was made with {made}, whose random streams are others"
    return UserError(f"{place}: {others}: a checkout of that version goes on with it to the same bits; {still}")


def streams(folder: RunFolder) -> AbstractContextManager[None]:
    """Inside the block, random streams are those that the run has used."""
    return seeds.earlier() if _older(folder) else nullcontext()


def _older(folder: RunFolder) -> str | None:
    """Return the version that made the run if its random streams differ from ours."""
    made = folder.made_with().get("fedshare")
    return None if made is None and folder.initial.exists() else _before(made)  # older runs hold no model


def _before(made: str | None) -> str | None:
    if number := re.match(r"(\d+)\.(\d+)", str(made)):
        return None if (int(number[1]), int(number[2])) >= _STREAMS else f"fedshare {made}"
    return "a fedshare before 0.2"


def warn_of_versions(folder: RunFolder) -> None:
    found = {name: number for name, number in folder.made_with().items() if name not in ("model", "initial")}
    if found != versions():
        said = ", ".join(f"{name} {number}" for name, number in found.items()) or "unknown"
        warn(f"{folder.path} was made with other versions, so the bits may differ: {said[:200]}")


def versions() -> dict[str, str]:
    # Not the metadata of fedshare: in an editable install they are as old as the installation.
    return {"fedshare": fedshare.__version__, **{name: version(name) for name in ("torch", "numpy")}}


def warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
