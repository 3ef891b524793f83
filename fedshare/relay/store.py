"""A log in an SQL database: entries in the order of their arrival, and commits, each of which ends a run of entries."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from fedshare.errors import UserError
from fedshare.machine.failpoints import failpoint
from fedshare.relay.commits import Commit, Head
from fedshare.relay.database import Database, Fenced, Row
from fedshare.relay.entries import Entry, Kind

FORMAT = 1
SNAPSHOTS = 2  # that are kept
_TABLES = (
    "CREATE TABLE IF NOT EXISTS relay (id BIGINT PRIMARY KEY, format BIGINT, epoch BIGINT)",
    "CREATE TABLE IF NOT EXISTS entries (place BIGINT PRIMARY KEY, kind BIGINT, peer BIGINT, number BIGINT,"
    " round BIGINT, body BYTEA, digest BYTEA, signature BYTEA)",
    "CREATE UNIQUE INDEX IF NOT EXISTS said ON entries (peer, number)",
    "CREATE TABLE IF NOT EXISTS commits (round BIGINT PRIMARY KEY, epoch BIGINT, last BIGINT, head BYTEA,"
    " signature BYTEA)",
    "CREATE TABLE IF NOT EXISTS snapshots (round BIGINT, digest BYTEA, part BIGINT, data BYTEA, whole BIGINT,"
    " PRIMARY KEY (round, digest, part))",
)
_ENTRY = "kind, peer, number, round, body, signature"


class Store:
    """`write`: begin a new epoch, which fences off every other process that writes. Raises UserError."""

    def __init__(self, database: Database, write: bool = True) -> None:
        self._db = database
        self.name = database.name
        self.epoch = 0
        if write:
            self._begin()
        self._place = self._db.execute("SELECT COALESCE(MAX(place), 0) FROM entries")[0][0]
        found = self._db.execute("SELECT round, head, signature FROM commits ORDER BY round DESC LIMIT 1")
        self.last = Head(int(found[0][0]), bytes(found[0][1]), bytes(found[0][2])) if found else None

    def _begin(self) -> None:
        with self._db.transaction():
            for table in _TABLES:
                self._db.execute(table)
            if not (found := self._db.execute("SELECT format, epoch FROM relay WHERE id = 1")):
                self._db.execute("INSERT INTO relay (id, format, epoch) VALUES (1, ?, 0)", (FORMAT,))
                found = [(FORMAT, 0)]
            if found[0][0] != FORMAT:
                raise UserError(f"{self.name}: a log of format {found[0][0]}; this relay writes format {FORMAT}")
            self.epoch = int(found[0][1]) + 1
            self._db.execute("UPDATE relay SET epoch = ? WHERE id = 1", (self.epoch,))

    # Writing.

    def writing(self) -> AbstractContextManager[None]:
        """Return a transaction. Raises Full, or Fenced if another process writes the log."""
        return self._db.transaction()

    def fenced(self) -> None:
        """Raise Fenced if another relay has begun an epoch. For the beginning of a transaction."""
        # The update takes the row's lock: a relay that begins an epoch waits for this transaction, or this one sees it.
        sql = "UPDATE relay SET epoch = epoch WHERE id = 1 AND epoch = ? RETURNING epoch"
        if not self._db.execute(sql, (self.epoch,)):
            raise Fenced(f"{self.name}: another relay has begun to write this log after epoch {self.epoch}")

    def append(self, entries: Sequence[Entry]) -> None:
        """In a transaction."""
        rows = [
            (
                *(self._place + at, int(one.kind), one.peer, one.number, one.round, one.body),
                *(hashlib.sha256(one.body).digest(), one.signature),
            )
            for at, one in enumerate(entries, 1)
        ]
        failpoint("relay before insert")
        self._db.many("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        failpoint("relay after insert")
        self._place += len(rows)

    def commit(self, commit: Commit, head: Head) -> None:
        """End the run of entries, which are those of `commit`. In a transaction, after them."""
        row = commit.round, commit.epoch, self._place, head.head, head.signature
        self._db.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?)", row)
        failpoint("relay after commit row")

    def committed(self, head: Head | None) -> None:
        """Call this after a transaction has ended well, with its new head."""
        self.last = head or self.last

    def reset(self) -> None:
        """Call this after a transaction has failed."""
        self._place = self._db.execute("SELECT COALESCE(MAX(place), 0) FROM entries")[0][0]

    # Reading.

    def head(self, round: int) -> Head | None:
        found = self._db.execute("SELECT head, signature FROM commits WHERE round = ?", (round,))
        return Head(round, bytes(found[0][0]), bytes(found[0][1])) if found else None

    def read(self, round: int) -> Commit | None:
        """Return a commit; None if there is none of this round."""
        found = self._db.execute("SELECT epoch, last FROM commits WHERE round = ?", (round,))
        if not found:
            return None
        before = self._db.execute("SELECT last FROM commits WHERE round = ?", (round - 1,))
        sql = f"SELECT {_ENTRY} FROM entries WHERE place > ? AND place <= ? ORDER BY place"
        rows = self._db.execute(sql, (before[0][0] if before else 0, found[0][1]))
        return Commit(round, int(found[0][0]), tuple(map(_entry, rows)))

    def commits(self, start: int) -> Iterator[Commit]:
        round = start
        while commit := self.read(round):
            yield commit
            round += 1

    def pending(self) -> list[Entry]:
        """Return the entries that no commit holds yet."""
        found = self._db.execute("SELECT COALESCE(MAX(last), 0) FROM commits")
        rows = self._db.execute(f"SELECT {_ENTRY} FROM entries WHERE place > ? ORDER BY place", (found[0][0],))
        return [*map(_entry, rows)]

    def said(self, peer: int, number: int) -> tuple[int, int, bytes, bytes] | None:
        """Return kind, round, SHA-256 of the body and signature of what a peer said under a number."""
        sql = "SELECT kind, round, digest, signature FROM entries WHERE peer = ? AND number = ?"
        found = self._db.execute(sql, (peer, number))
        return (int(found[0][0]), int(found[0][1]), bytes(found[0][2]), bytes(found[0][3])) if found else None

    def noted(self, peer: int) -> int:
        """Return the highest number of a peer's entries, committed or not."""
        return int(self._db.execute("SELECT COALESCE(MAX(number), 0) FROM entries WHERE peer = ?", (peer,))[0][0])

    def size(self, start: int) -> int:
        """Return the bytes of the bodies in the commits from round `start` on."""
        before = self._db.execute("SELECT last FROM commits WHERE round = ?", (start - 1,))
        sql = "SELECT COALESCE(SUM(LENGTH(body) + 89), 0) FROM entries WHERE place > ?"
        return int(self._db.execute(sql, (before[0][0] if before else 0,))[0][0])

    # Snapshots.

    def snapshots(self) -> list[tuple[int, bytes, int]]:
        """Return round, digest and bytes of each that two peers attest, or all if there are fewer; the newest last."""
        peers = self._db.execute("SELECT COUNT(DISTINCT peer) FROM entries WHERE kind = ?", (int(Kind.MESSAGE),))
        sql = (
            "SELECT s.round, s.digest, s.size FROM (SELECT round, digest, SUM(LENGTH(data)) AS size FROM snapshots"
            " WHERE whole = 1 GROUP BY round, digest) s WHERE (SELECT COUNT(DISTINCT peer) FROM entries e"
            " WHERE e.kind = ? AND e.round = s.round + 1 AND e.body = s.digest) >= ? ORDER BY s.round"
        )
        rows = self._db.execute(sql, (int(Kind.ATTEST), min(2, int(peers[0][0]))))
        return [(int(round), bytes(digest), int(size)) for round, digest, size in rows]

    def stored(self, round: int, digest: bytes) -> bool:
        """Return whether all of a snapshot is here."""
        sql = "SELECT 1 FROM snapshots WHERE round = ? AND digest = ? AND whole = 1 LIMIT 1"
        return bool(self._db.execute(sql, (round, digest)))

    def part(self, round: int, digest: bytes, part: int) -> bytes:
        """Return a part of a snapshot, from 0; empty after the last."""
        sql = "SELECT data FROM snapshots WHERE round = ? AND digest = ? AND part = ?"
        found = self._db.execute(sql, (round, digest, part))
        return bytes(found[0][0]) if found else b""

    def put_part(self, round: int, digest: bytes, part: int, data: bytes) -> None:
        """In a transaction, as the following."""
        self._db.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, 0)", (round, digest, part, data))

    def drop(self, round: int, digest: bytes) -> None:
        self._db.execute("DELETE FROM snapshots WHERE round = ? AND digest = ?", (round, digest))

    def keep(self, round: int, digest: bytes, most: int = SNAPSHOTS) -> None:
        """Count a snapshot as whole, and remove all but the newest."""
        failpoint("relay in snapshot")
        self._db.execute("UPDATE snapshots SET whole = 1 WHERE round = ? AND digest = ?", (round, digest))
        rows = self._db.execute("SELECT DISTINCT round FROM snapshots WHERE whole = 1 ORDER BY round DESC")
        if len(rows) > most:
            self._db.execute("DELETE FROM snapshots WHERE round <= ?", (int(rows[most][0]),))

    @property
    def database(self) -> Database:
        return self._db

    def close(self) -> None:
        self._db.close()


def _entry(row: Row) -> Entry:
    kind, peer, number, round, body, signature = row
    return Entry(kind, peer, number, round, bytes(body), bytes(signature))
