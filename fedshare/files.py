"""Where files lie, and writing them so that a crash leaves the old one or the new one, never a part of one."""

import os
from pathlib import Path


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


def write_atomically(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write beside, fsync, rename, fsync the folder. It has `mode`, less the umask, from the first moment."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)  # what a crash left may have wider permissions
    try:
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
