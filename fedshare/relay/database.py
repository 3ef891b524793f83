"""What a log needs of an SQL database, and SQLite as one."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from fedshare.errors import RunHalted, UserError, first_line

Row = tuple[Any, ...]
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


class Full(Exception):
    """The disk is full or cannot be written; nothing of the transaction is stored. The message is one line."""


class Fenced(RunHalted):
    """Another relay writes this log now."""


class Database(Protocol):
    """SQL with ``?`` for parameters. Used by one thread at a time; one relay at a time has it open for writing."""

    name: str  # where it is, for messages

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]: ...

    def many(self, sql: str, rows: Sequence[Row]) -> None: ...

    def transaction(self) -> AbstractContextManager[None]:
        """Begin; at the end all of it is on disk, or after an exception nothing. Raises Full."""
        ...

    def close(self) -> None: ...


class SQLite:
    """A database in one file, with WAL and synchronous=FULL: a commit is on disk when it returns.

    A second process that opens it for writing is refused. Raises UserError.
    """

    def __init__(self, path: Path, write: bool = True) -> None:
        self.name = str(path)
        if not write and not path.exists():
            raise UserError(f"{path}: there is no log")
        self._lock = _locked(path.with_suffix(".lock")) if write else None
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
            for pragma in ("journal_mode=WAL", "synchronous=FULL") if write else ("query_only=1",):
                self._connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be opened as a log: {first_line(error)}") from error

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._meant(error) from error

    def many(self, sql: str, rows: Sequence[Row]) -> None:
        try:
            self._connection.executemany(sql, rows)
        except sqlite3.DatabaseError as error:
            raise self._meant(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def close(self) -> None:
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)

    def _meant(self, error: sqlite3.DatabaseError) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _FULL:
            return Full(f"{self.name}: cannot be written: {first_line(error)}")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return UserError(f"{self.name}: is damaged: {first_line(error)}")
        return error


def _locked(path: Path) -> int:
    """Return a descriptor that holds the lock of a log for this process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{path.parent}: another relay has this log open; one may write it") from None
    return descriptor
