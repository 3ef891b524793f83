"""Finding the files of a data set: files on disk are used, missing files are downloaded.

Two environment variables configure this:

* ``FEDSHARE_DATA``: the folder of all data sets, by default in the user's cache folder. A loader's `root` overrides it.
* ``FEDSHARE_MIRROR``: the address of a mirror, for use behind a firewall. ``https://host/path`` is then requested as
  ``$FEDSHARE_MIRROR/host/path``, the layout that ``wget --force-directories`` creates, so any web server that serves
  such a folder will do.
"""

import hashlib
import logging
import os
from functools import cache
from pathlib import Path

from filelock import FileLock

from fedshare.data.download import DEADLINE, fetch, unpack
from fedshare.data.sources import Source
from fedshare.errors import UserError
from fedshare.machine.files import data_folder

log = logging.getLogger(__name__)


def find(source: Source, root: str | Path | None = None) -> dict[str, Path]:
    """Return the files of a data set, by `Source.names`.

    A file on disk that differs from the published one is used, with a warning. Raise `UserError` if one is missing and
    cannot be downloaded, or only with a wrong checksum.
    """
    base = data_folder(root)
    folders = list(dict.fromkeys(base / folder for folder in (source.folder, source.inside) if folder))
    for folder in folders:
        if len(found := present(source, folder)) == len(source.names):
            compare(source, found)
            return found
    try:
        return download(source, base / source.folder)
    except OSError as error:
        found = present(source, folders[0])
        missing = ", ".join(name for name in source.names if name not in found)
        places = " or ".join(str(folder) for folder in folders)
        raise UserError(f"put {missing} into {places}: not there, and the download failed: {error}") from error


def present(source: Source, folder: Path) -> dict[str, Path]:
    """Return the files on disk; if a file is there packed and unpacked, the unpacked one, which is faster to read."""
    found = {}
    for name in source.names:
        candidates = [name, f"{name}.gz"] if f"{name}.gz" in source.files else [name]
        for candidate in candidates:
            if (folder / candidate).is_file():
                found[name] = folder / candidate
                break
    return found


def compare(source: Source, found: dict[str, Path]) -> None:
    different = []
    for path in found.values():
        algorithm, _, checksum = source.files.get(path.name, "").partition(":")
        if checksum:
            with path.open("rb") as file:
                if hashlib.file_digest(file, algorithm).hexdigest() != checksum:
                    different.append(path.name)
    if different:
        warn_once(f"{path.parent}: not the published files, by their checksums: {', '.join(different)}")


@cache
def warn_once(line: str) -> None:
    log.warning("warning: %s", line)


def download(source: Source, folder: Path) -> dict[str, Path]:
    """Download the missing files and return all. Raise `OSError` if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=DEADLINE):  # several processes of one host may start without data
        missing = [name for name in source.names if name not in present(source, folder)]
        if missing and source.archive:
            archive = folder / source.addresses[0].rsplit("/", 1)[-1]
            fetch(mirrored(source.addresses), source.archive, archive)
            unpack(archive, source.inside, missing, folder)
            archive.unlink()
        elif missing:
            for name in missing:
                published = f"{name}.gz" if f"{name}.gz" in source.files else name
                urls = mirrored(tuple(address + published for address in source.addresses))
                fetch(urls, source.files[published], folder / published)
        return present(source, folder)


def mirrored(urls: tuple[str, ...]) -> list[str]:
    mirror = os.environ.get("FEDSHARE_MIRROR")
    if not mirror:
        return list(urls)
    if not mirror.startswith(("http://", "https://")):
        raise UserError(f"FEDSHARE_MIRROR is {mirror!r}: it must start with http:// or https://")
    return [f"{mirror.rstrip('/')}/{url.partition('://')[2]}" for url in urls]
