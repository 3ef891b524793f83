"""Where files lie, and writing them so that a crash leaves the old one or the new one, never a part of one."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedshare.errors import DiskError, of_the_disk


def state_folder(given: str | None = None) -> Path:
    """Where the clients of this host keep what they remember."""
    if given or (given := os.environ.get("FEDSHARE_STATE")):
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "fedshare"


def data_folder(root: str | Path | None = None) -> Path:
    """Where data sets and weights lie: `root`, or ``$FEDSHARE_DATA``, or the user's cache folder."""
    if root or (root := os.environ.get("FEDSHARE_DATA")):
        return Path(root).expanduser()
    import pooch

    return Path(pooch.os_cache("fedshare"))


def write_atomically(path: Path, data: bytes | str, mode: int | None = None) -> None:
    """Write beside, fsync, rename, fsync the folder. It has `mode` from the first moment; None: what the umask leaves.

    An OSError names `path`, and leaves nothing beside it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path), _under_way(beside):
        beside.unlink(missing_ok=True)  # what a crash left may have wider permissions
        try:
            with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode or 0o666)) as file:
                if mode is not None:
                    with suppress(PermissionError):  # a file system without modes; no umask gives more than was asked
                        os.fchmod(file.fileno(), mode)
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):  # of a disk that is read-only now
                beside.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_temporary: list[str] = []  # names of the files that threads of this process are writing; `sweep` leaves them


@contextmanager
def _under_way(beside: Path) -> Iterator[None]:
    _temporary.append(beside.name)
    try:
        yield
    finally:
        _temporary.remove(beside.name)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file; on disk when this returns. An OSError names `path`."""
    with writing(path), path.open("ab", buffering=0) as file:
        while data:  # a disk that is filling up takes a part
            data = data[file.write(data) :]
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an OSError name `path`: that of a write names no file, and that of a temporary one names another."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        if error.filename2 is not None:
            del error.filename2  # None would be shown as a second file
        raise


def private_folder(path: Path) -> None:
    """Make `path`, and what is missing above it, for this user alone; where it is there, so too."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    missing = [folder for folder in (path, *path.parents) if not folder.exists()] or [path]
    for folder in reversed(missing):
        with writing(path):
            folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            with suppress(PermissionError), writing(path):  # another user's, or a file system without modes
                folder.chmod(0o700)


def sweep(folder: Path, shared: bool = False) -> None:
    """Remove the temporary files that killed processes left in `folder`; if it is `shared`, none of a live process.

    Those that another thread of this process is writing stay in any case.
    """
    for stray in folder.glob(".*.tmp"):
        if stray.name in _temporary:
            continue
        process = stray.suffixes[-2:][0].removeprefix(".")
        if not (shared and process.isdigit() and int(process) != os.getpid() and _lives(int(process))):
            with suppress(OSError):  # a disk that is read-only: who writes there says so
                stray.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def on_disk(folder: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Raise DiskError where `folder` cannot be written, with `advice`: what is safe there, and how to go on."""
    try:
        yield
    except OSError as error:
        if not of_the_disk(error) or (place := _place(error, folder)) is None:
            raise
        raise DiskError(f"{folder}: cannot be written: {error.strerror}{place}; {advice()}") from error


def _place(error: OSError, folder: Path) -> str | None:
    """Which file of `folder` it was, in parentheses; None: another's."""
    if error.filename is None:  # what is printed; EIO there is a terminal that is gone
        return None if error.errno == errno.EIO else " (its output)"
    path = Path(error.filename)
    if not path.is_relative_to(folder):
        return None
    return "" if path == folder else f" ({path.relative_to(folder)})"
