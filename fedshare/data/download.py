"""Resumable downloads, and extraction of only the wanted files from an archive."""

import os
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from rich.progress import Progress

TIMEOUT = 30.0  # seconds without data after which a connection counts as lost
DEADLINE = 3600.0  # seconds: the most that one file may take
CHUNK = 1 << 18  # bytes


class Resumable:
    """A downloader for pooch that keeps received bytes in `part` and requests only the rest."""

    def __init__(self, part: Path) -> None:
        self.part = part
        self.until = time.monotonic() + DEADLINE

    def __call__(self, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        """Raise `OSError` or `HTTPException` when an attempt receives nothing new, or the deadline has passed."""
        while True:
            before = self.have
            try:
                self.transfer(url)
                break
            except (OSError, HTTPException):
                if self.have <= before or time.monotonic() > self.until:
                    raise
        os.replace(self.part, output_file)

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def transfer(self, url: str) -> None:
        have = self.have
        headers = {"User-Agent": "fedshare"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
        except HTTPError as error:
            error.close()
            if error.code != 416 or not have:
                raise
            # The part is neither complete nor a prefix of the file published now.
            if error.headers["Content-Range"] != f"bytes */{have}":
                self.part.unlink()
                self.transfer(url)
            return
        with response:
            resumed = response.status == 206 and (response.headers["Content-Range"] or "").startswith(f"bytes {have}-")
            length = response.headers["Content-Length"]
            start = have if resumed else 0
            total = start + int(length) if length else None
            with self.part.open("ab" if resumed else "wb") as file, progress() as bar:
                task = bar.add_task(url.rsplit("/", 1)[-1], total=total, completed=start)
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    bar.advance(task, len(chunk))
                    if time.monotonic() > self.until:
                        raise TimeoutError(f"not done after {DEADLINE:.0f} s")
        if total is not None and self.have < total:
            raise ConnectionError(f"cut off after {self.have} of {total} bytes")


def progress() -> "Progress":
    """Return a progress bar on standard error, silent if that is not a terminal."""
    from rich.console import Console  # imported here for the same reason as pooch below
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def fetch(urls: Iterable[str], checksum: str, target: Path) -> None:
    """Download the file with this checksum ("md5:..." or "sha256:...") from the first of `urls` that has it.

    Write it to `target`. Raise `OSError` with one line that gives each address and why it failed.
    """
    import pooch  # imported here because most runs have their data and should not wait for this import

    pooch.get_logger().setLevel("WARNING")  # the progress bar or the error is enough

    failures = []
    for url in urls:
        try:
            pooch.retrieve(url, checksum, target.name, target.parent, downloader=Resumable(part(target)))
            return
        except (ValueError, OSError, HTTPException) as error:  # pooch raises ValueError for a wrong checksum
            failures.append(f"{url} fails: {' '.join(str(error).split()) or type(error).__name__}")
    raise OSError("; ".join(failures))


def part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def unpack(archive: Path, inside: str, names: list[str], folder: Path) -> None:
    """Extract the files `names` from the archive's folder `inside` into `folder`, each atomically.

    No other member is read and no path from the archive is used, so none can escape the folder. Raise `OSError` if the
    archive is broken or lacks a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".unpack-") as temporary:
        try:
            with tarfile.open(archive) if tarfile.is_tarfile(archive) else zipfile.ZipFile(archive) as opened:
                for name in names:
                    with member(opened, f"{inside}/{name}") as source, (Path(temporary) / name).open("wb") as file:
                        shutil.copyfileobj(source, file)
        except (KeyError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
            raise OSError(f"{archive.name} cannot be unpacked: {error}") from error
        for name in names:
            os.replace(Path(temporary) / name, folder / name)


def member(archive: tarfile.TarFile | zipfile.ZipFile, name: str) -> IO[bytes]:
    if isinstance(archive, zipfile.ZipFile):
        return archive.open(name)
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file
