"""The audit log of a server: who joined, from where, with which certificate; refusals; the operator's actions.

JSON Lines. Each line is sealed over itself and the line before, as in `seals`, so that any line changed, moved, added
or removed is detected; lines removed at the end are detected by the rounds that the log lacks. Entries caused by
others are rate-limited: however many strangers connect, they add at most a few MB a day.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedshare.errors import UserError, brief
from fedshare.machine.files import append, writing
from fedshare.machine.tally import Tally
from fedshare.runs.seals import Seal

Entry = dict[str, str | int]
NAME = "audit.jsonl"
EVERY = 600.0  # period in which one client or address adds six entries at most, and all together `IN_ALL`
IN_ALL = 100
_HELD = 10_000  # entries held before the file is open; the oldest are dropped, and counted
_LOOK = 1.0  # period in seconds in which hidden entries are reported


class Audit:
    """Entries are written by a thread of the log's own, many at a time, so that `note` never waits for the disk.

    Until `open` is called, entries are held in memory. An OSError of the disk is raised by the next `check` or `flush`;
    after it nothing more is written, because a log with a gap would pass for a complete one.
    """

    def __init__(self, every: float = EVERY) -> None:
        # Admitted clients are limited in number, and each has its own rate limit.
        self._strangers, self._clients = (
            Tally(lambda line: self._add({"event": "more", "what": brief(line)}), every, in_all=most)
            for most in (IN_ALL, sys.maxsize)
        )
        self._held: deque[Entry] = deque()
        self._dropped = 0
        self._wake = threading.Condition(threading.RLock())
        self._path: Path | None = None
        self._last = ""
        self._writing = self._closing = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)

    @property
    def path(self) -> Path | None:
        """The path; None before it is opened."""
        return self._path

    def open(self, path: Path) -> None:
        """Continue the log at `path`, or create it.

        A last line that a crash cut short is replaced by an entry that says so. Raises UserError if the log was
        altered, and OSError.
        """
        last, torn = _end(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o600)) as file:
                if torn:
                    cut: Entry = {"at": _now(), "event": "repaired", "bytes": len(torn)}
                    cut["cut"] = brief(torn.decode("latin-1"))
                    seal = Seal.over(cut, last)
                    file.seek(-len(torn), os.SEEK_END)
                    file.write(seal.to_line())
                    file.truncate()
                    file.flush()
                    os.fsync(file.fileno())
                    last = seal.digest
        with self._wake:
            self._path, self._last = path, last
            self._thread.start()

    def note(self, event: str, about: str | None = None, /, **what: str | int) -> None:
        """Add an entry. `about`: who caused it, unless it was the operator or the run itself."""
        with self._wake:
            inside = event in ("joined", "gone")
            tally = self._clients if inside else self._strangers
            if about is None or tally.admits(about, f"{event} {what}", changes=inside):
                self._add({"event": event, **what})

    def flush(self) -> None:
        """Block until all entries are on disk. Raises OSError; does nothing before the log is opened."""
        with self._wake:
            while self._path and (self._held or self._writing) and self._error is None:
                self._wake.wait(_LOOK)
        self.check()

    def check(self) -> None:
        """Raise the OSError of the writer thread, if any."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write the remaining entries and stop. Raises OSError."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self.check()

    def _add(self, what: Entry) -> None:
        with self._wake:
            self._held.append({"at": _now(), **what})
            if len(self._held) > _HELD:
                self._held.popleft()
                self._dropped += 1
            self._wake.notify_all()

    def _write(self) -> None:
        while True:
            with self._wake:
                if not self._held and not self._closing:
                    self._wake.wait(_LOOK)
                self._strangers.flush()
                self._clients.flush()
                if not self._held:
                    if self._closing:
                        return
                    continue
                entries, dropped = list(self._held), self._dropped
                self._held.clear()
                self._dropped, self._writing = 0, True
            try:
                self._append(entries, dropped)
            except OSError as error:
                self._error = error
                return
            finally:
                with self._wake:
                    self._writing = False
                    self._wake.notify_all()

    def _append(self, entries: list[Entry], dropped: int) -> None:
        assert self._path is not None
        if dropped:
            entries.insert(0, {"at": _now(), "event": "dropped", "entries": dropped})
        lines, last = [], self._last
        for entry in entries:
            seal = Seal.over(entry, last)
            last = seal.digest
            lines.append(seal.to_line())
        append(self._path, b"".join(lines))
        self._last = last


def read(path: Path) -> Iterator[Seal]:
    """Yield the entries of a log, without a last line that a crash cut short. Raises UserError at the first line that
    does not follow from those before.
    """
    last = ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if (seal := Seal.read(line[:-1], last)) is None:
                raise UserError(f"{path}: line {number} does not follow from the lines before: the log was altered")
            last = seal.digest
            yield seal


def flaw(path: Path, rounds: int) -> str | None:
    """Return why the log at `path` is not that of a run of this many rounds; None if nothing indicates it."""
    known, first = 0, True
    try:
        for seal in read(path):
            if first and seal.covers.get("event") not in _FIRST:
                return f"{path.name}: its first lines are missing"
            known, first = seal.round if seal.round is not None else known, False
    except UserError as error:
        return str(error).removeprefix(f"{path.parent}/")
    if known < rounds - 1:  # a row is written before its entry, and a kill may come in between
        return f"{path.name}: its last lines are missing: it ends at round {known}, and the run has {rounds}"
    return None


_FIRST = ("listening", "repaired", "dropped")


def _end(path: Path) -> tuple[str, bytes]:
    """Return the last digest of a log, and the partial line at its end. Raises UserError if it was altered."""
    if not path.exists():
        return "", b""
    last = ""
    for seal in read(path):
        last = seal.digest
    data = path.read_bytes()
    return last, data[data.rfind(b"\n") + 1 :]


def _now() -> str:
    """The time in UTC, because a log outlives daylight saving time."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
