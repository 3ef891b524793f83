"""Locations of files, and atomic writes: after a crash, a file is the old or the new one, never a part of either."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedshare.errors import DiskError, of_the_disk


def state_folder(given: str | None = None) -> Path:
    """Return the folder where the clients of this host keep their memories."""
    if given or (given := os.environ.get("FEDSHARE_STATE")):
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "fedshare"


def data_folder(root: str | Path | None = None) -> Path:
    """Return the folder of data sets and weights: `root`, ``$FEDSHARE_DATA``, or the user's cache folder."""
    if root or (root := os.environ.get("FEDSHARE_DATA")):
        return Path(root).expanduser()
    import pooch

    return Path(pooch.os_cache("fedshare"))


def write_atomically(path: Path, data: bytes | str, mode: int | None = None) -> None:
    """Write a temporary file, fsync, rename, fsync the folder. `mode` applies from creation; None: as the umask says.

    An OSError names `path`; the temporary file is removed.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path), _under_way(beside):
        beside.unlink(missing_ok=True)  # a file left by a crash may have wider permissions
        try:
            with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode or 0o666)) as file:
                if mode is not None:
                    with suppress(PermissionError):  # a file system without modes; the umask never grants more
                        os.fchmod(file.fileno(), mode)
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):  # the disk has become read-only
                beside.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_temporary: list[str] = []  # files being written by threads of this process, which `sweep` keeps


@contextmanager
def _under_way(beside: Path) -> Iterator[None]:
    _temporary.append(beside.name)
    try:
        yield
    finally:
        _temporary.remove(beside.name)


def append(path: Path, data: bytes) -> None:
    """Append to a file and fsync it. An OSError names `path`."""
    with writing(path), path.open("ab", buffering=0) as file:
        while data:  # on a disk that fills up, a write may be partial
            data = data[file.write(data) :]
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an OSError name `path`: errors of writes name no file, and those of temporary files name another."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        if error.filename2 is not None:
            del error.filename2  # None would be shown as a second file
        raise


def private_folder(path: Path) -> None:
    """Create `path` and its missing parents with access for this user only; restrict an existing one likewise."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    missing = [folder for folder in (path, *path.parents) if not folder.exists()] or [path]
    for folder in reversed(missing):
        with writing(path):
            folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            with suppress(PermissionError), writing(path):  # another user's folder, or a file system without modes
                folder.chmod(0o700)


def sweep(folder: Path, shared: bool = False) -> None:
    """Remove the temporary files that killed processes left in `folder`; if `shared`, keep those of live processes.

    Files that another thread of this process is writing are always kept.
    """
    for stray in folder.glob(".*.tmp"):
        if stray.name in _temporary:
            continue
        process = stray.suffixes[-2:][0].removeprefix(".")
        if not (shared and process.isdigit() and int(process) != os.getpid() and _lives(int(process))):
            with suppress(OSError):  # a read-only disk: the process that writes there reports it
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
    """Raise DiskError if `folder` cannot be written, with `advice`: what is safe there, and how to resume."""
    try:
        yield
    except OSError as error:
        if not of_the_disk(error) or (place := _place(error, folder)) is None:
            raise
        raise DiskError(f"{folder}: cannot be written: {error.strerror}{place}; {advice()}") from error


def _place(error: OSError, folder: Path) -> str | None:
    """Return the file of `folder` that failed, in parentheses; None if the error is about another file."""
    if error.filename is None:  # an error of printing; EIO there means that the terminal is gone
        return None if error.errno == errno.EIO else " (its output)"
    path = Path(error.filename)
    if not path.is_relative_to(folder):
        return None
    return "" if path == folder else f" ({path.relative_to(folder)})"
