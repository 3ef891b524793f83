"""Where a stopped run resumes, and the hint printed about it."""

from omegaconf import DictConfig

from fedshare.errors import UserError
from fedshare.experiments.beginnings import warn, warn_of_versions
from fedshare.runs import RunFolder, checkpoint, records_flaw
from fedshare.runs.checkpoint import Checkpoint


def goes_on(folder: RunFolder, remote: bool = False) -> str:
    """Return what of the run is safe, and how to resume it once the disk is writable; `remote` as for `again`."""
    last = last_saved(folder)
    safe = f"safe up to round {last}, its last checkpoint" if last else "its config is safe, and no round yet"
    return f"{safe}; once it can be written, {again(folder, remote)} goes on, to the same bits"


def again(folder: RunFolder, remote: bool) -> str:
    """Return the command that resumes the run in `folder`; `remote`: its clients are not simulated."""
    return f"the same command with --resume {folder.path}" if remote else f"`fedshare resume {folder.path}`"


def last_saved(folder: RunFolder) -> int:
    """The round of the last checkpoint; 0 if there is none."""
    return next(iter(checkpoint.rounds(folder.checkpoints)), 0)


def last_checkpoint(folder: RunFolder, config: DictConfig) -> Checkpoint | None:
    """Return the checkpoint from which the run in `folder`, whose lock is held, can resume, if any."""
    path = folder.path
    if wrong := records_flaw(folder):
        raise UserError(f"{path}: {wrong}")
    start = checkpoint.latest(folder.checkpoints, warn)
    if start and start.round > config.rounds:
        raise UserError(f"rounds={config.rounds}: {path} is already at round {start.round}")
    if start and start.round == config.rounds:
        print(f"{path} is at its last round, {config.rounds}; --rounds N goes on to round N")
    if start and [link.digest for link in folder.links()][start.round - 1 : start.round] != [start.digest]:
        raise UserError(f"{path}: its digests.jsonl does not lead to the checkpoint of round {start.round}")
    warn_of_versions(folder)
    return start
