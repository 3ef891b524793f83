"""PostgreSQL as the database of a log, for a relay that may be started again on another host."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedshare.errors import RunHalted, UserError, first_line
from fedshare.relay.database import Full, Row

try:
    import psycopg
except ImportError as missing:
    raise UserError("--postgres: takes psycopg: pip install 'fedshare[postgres]'") from missing

SCHEMA = "fedshare"
_FULL = "53100", "53000", "53200"  # disk full, insufficient resources, out of memory


class Postgres:
    """The schema ``fedshare`` of a database. Raises UserError if it cannot be used, or another relay is active.

    The active relay holds an advisory lock, for as long as its connection lives.
    """

    def __init__(self, dsn: str, write: bool = True) -> None:
        try:
            self._connection = psycopg.connect(dsn, autocommit=True, connect_timeout=10)
            about = self._connection.info
            self.name = f"postgresql {about.host}:{about.port}/{about.dbname}"
            self._connection.execute("SET synchronous_commit = on")
            if write:
                self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            self._connection.execute(f"SET search_path TO {SCHEMA}")
            if write and not self._lock():
                self._connection.close()
                raise UserError(f"{self.name}: another relay is active on this database; one may write it")
        except psycopg.Error as error:
            raise UserError(f"--postgres: cannot be used: {first_line(error)}") from None

    def _lock(self) -> bool:
        key = int.from_bytes(hashlib.sha256(SCHEMA.encode()).digest()[:8], "little", signed=True)
        found = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
        return bool(found and found[0])

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        try:
            cursor = self._connection.execute(sql.replace("?", "%s"), parameters)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise self._meant(error) from error

    def many(self, sql: str, rows: Sequence[Row]) -> None:
        try:
            with self._connection.cursor() as cursor:
                cursor.executemany(sql.replace("?", "%s"), rows)
        except psycopg.Error as error:
            raise self._meant(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with self._connection.transaction():
                yield
        except psycopg.Error as error:
            raise self._meant(error) from error

    def close(self) -> None:
        self._connection.close()

    def _meant(self, error: psycopg.Error) -> Exception:
        if error.sqlstate in _FULL:
            return Full(f"{self.name}: cannot be written: {first_line(error)}")
        if self._connection.closed:
            return RunHalted(f"{self.name}: the connection is lost: {first_line(error)}")
        return error
