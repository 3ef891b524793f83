"""Where a gate finds the servers of runs: in one folder, NAME.sock and NAME.lock for each.

Who can reach a socket is believed whom it speaks for, so the folder is for one user alone.
"""

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedshare.errors import NAME, UserError, brief
from fedshare.machine.files import private_folder

_RUN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LONGEST = 103  # bytes of a socket's path; Linux takes 107


def run_name(name: str, flag: str = "") -> str:
    """`name`, where a run may have it; else raises UserError, which begins with `flag`."""
    if not _RUN.fullmatch(name):
        allowed = "1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
        raise UserError(f"{flag}{brief(name, NAME)!r}: is no name of a run; must be {allowed}")
    return name


def folder(path: Path | str) -> Path:
    """The folder at `path`, made where it is missing. Raises UserError unless it is this user's alone."""
    place = Path(path).absolute()
    if not place.exists():
        private_folder(place)
    found = place.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: must be a folder")
    if found.st_uid != os.geteuid():
        raise UserError(f"{path}: belongs to another user; gate and servers run as one user, whose folder it is")
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(
            f"{path}: others can use this folder (mode {mode | 0o700:04o}): chmod 0700 {path}, or take another"
        )
    return place


def path_of(place: Path, run: str) -> Path:
    return place / f"{run}.sock"


@contextmanager
def taken(place: Path, run: str, clients: int) -> Iterator[Path]:
    """Have the name `run` in a folder, for a server of so many `clients`: the path of its socket.

    Raises UserError where another server has the name. A killed server has none.
    """
    path = path_of(place, run_name(run))
    if (size := len(os.fsencode(path))) > _LONGEST:
        raise UserError(f"{path}: the path of a socket may have {_LONGEST} bytes, not {size}: take a shorter folder")
    # Never removed: who waits for a removed file's lock and who makes it anew would both have the name.
    with (place / f"{run}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--name {run}: another server has this name in {place}") from None
        lock.truncate(0)
        lock.write(str(clients))
        lock.flush()
        path.unlink(missing_ok=True)  # of one that was killed
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def here(place: Path) -> list[str]:
    """The runs whose servers listen, sorted."""
    with suppress(OSError):
        names = [path.stem for path in place.iterdir() if path.suffix == ".sock" and _RUN.fullmatch(path.stem)]
        return sorted(name for name in names if _listens(path_of(place, name)))
    return []


def clients(place: Path, run: str) -> int:
    """How many clients a run has; 0: not known."""
    with suppress(OSError, ValueError):
        return int((place / f"{run}.lock").read_text())
    return 0


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno == errno.EAGAIN  # it is busy
    return True
