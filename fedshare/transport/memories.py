"""What the clients of this host remember of runs: which runs, how much, and whether a client is at work in one.

    DIR/RUN/client-3/round-000007-....safetensors   see `fedshare.transport.flower.memory`
    DIR/RUN/.lock                                    held, shared, by each client that takes part in the run now
    DIR/RUN/.keep                                    its user has said that it is to be kept

RUN is the id of a run, which its folder on the server has in ``run-id``.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedshare.errors import UserError
from fedshare.machine.files import write_atomically

_RUN = re.compile("[0-9a-f]{16}")
_GONE = ".deleted-"  # begins the name of what is being deleted


@dataclass(frozen=True)
class Remembered:
    """What is there of one run."""

    path: Path
    clients: int
    rounds: tuple[int, int] | None  # the first and the last of which there is a memory
    bytes: int
    used: float  # when something was last written, in seconds since the epoch
    private: bool  # it holds what private training has cost
    kept: bool

    @property
    def run(self) -> str:
        return self.path.name

    @property
    def at_work(self) -> bool:
        """Whether a client takes part in the run now."""
        try:
            with _alone(self.path):
                return False
        except BlockingIOError:
            return True

    def keep(self, kept: bool) -> None:
        """Say that it is, or is no longer, to be kept, whatever its age."""
        if kept:
            write_atomically(self.path / ".keep", b"", mode=0o600)
        else:
            (self.path / ".keep").unlink(missing_ok=True)

    def delete(self) -> None:
        """Raises UserError where it is in use or to be kept."""
        if self.kept:
            raise UserError(f"{self.run}: is to be kept: --no-keep {self.run} first")
        try:
            with _alone(self.path):
                gone = self.path.with_name(f"{_GONE}{self.run}-{os.getpid()}")
                os.rename(self.path, gone)  # so that a crash leaves no half of it under its name
        except BlockingIOError:
            raise UserError(f"{self.run}: a client is taking part in this run") from None
        shutil.rmtree(gone)


def find(folder: Path) -> list[Remembered]:
    """Those below `folder`, the one that was used last first. What a crash has left half deleted is removed."""
    if not folder.is_dir():
        return []
    for gone in folder.glob(f"{_GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)
    runs = [path for path in folder.iterdir() if _RUN.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    return sorted(map(_remembered, runs), key=lambda found: (-found.used, found.run))


def _remembered(path: Path) -> Remembered:
    files = [one for one in path.rglob("*") if one.is_file() and one.name not in (".lock", ".keep")]
    stats = [one.stat() for one in files]
    rounds = [int(match[1]) for one in files if (match := re.match(r"round-(\d+)-", one.name))]
    return Remembered(
        path,
        clients=sum(one.is_dir() for one in path.glob("client-*")),
        rounds=(min(rounds), max(rounds)) if rounds else None,
        bytes=sum(one.st_size for one in stats),
        used=max((one.st_mtime for one in [*stats, path.stat()]), default=0.0),
        private=any(one.name in ("ledger", "secret") for one in files),
        kept=(path / ".keep").exists(),
    )


def take_part(path: Path) -> int | None:
    """Hold the memories at `path`, lest they are deleted meanwhile, for as long as the descriptor is open.

    None where there are none, or the file system has no locks.
    """
    try:
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # what stands in the way shows when a memory is written
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Raises BlockingIOError where a client holds them."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
        yield
    finally:
        os.close(descriptor)
