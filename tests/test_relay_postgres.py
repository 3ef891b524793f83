"""A relay's log on PostgreSQL: the same SQL as on SQLite, and one active relay."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres
from fedshare.errors import RunHalted, UserError
from fedshare.relay.members import uploads
from fedshare.relay.sequencer import Status
from fedshare.relay.store import Store
from fedshare.relay.verify import check
from relayed import Log

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.cluster() as dsn:
        yield dsn


@pytest.fixture
def dsn(server: str) -> str:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS fedshare CASCADE")
    return server


def test_rounds_on_postgresql(dsn: str, tmp_path: Path) -> None:
    from fedshare.relay.postgres import Postgres

    with Log(tmp_path, Store(Postgres(dsn))) as log:
        log.admit(0, 1)
        log.until(0)
        log.say(log.entry(0, 1, 1, b"one"))
        assert log.say(log.entry(0, 1, 1, b"one")).status is Status.KNOWN
        log.say(log.entry(1, 1, 1, b"other"))
        assert uploads(log.until(1), [0, 1]) == {0: b"one", 1: b"other"}
    with Log(tmp_path, Store(Postgres(dsn))) as log:
        assert log.store.epoch == 2
        assert log.commits.keys() == {0, 1}
        for peer in (0, 1):
            log.say(log.entry(peer, 2, 2))
        log.until(2)
    reader = Store(Postgres(dsn, write=False), write=False)
    assert check(reader).members.round == 2
    reader.close()


def test_one_relay_is_active(dsn: str, tmp_path: Path) -> None:
    from fedshare.relay.postgres import Postgres

    with (
        Log(tmp_path, Store(Postgres(dsn))),
        pytest.raises(UserError, match="another relay is active"),
    ):
        Postgres(dsn)


def test_a_fenced_relay_writes_nothing_more(dsn: str, tmp_path: Path) -> None:
    import psycopg

    from fedshare.relay.postgres import Postgres

    with Log(tmp_path, Store(Postgres(dsn))) as log:
        log.admit(0, 1)
        log.until(0)
        # Another relay that has got the lock, as after a failover: this one's session is not over.
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE fedshare.relay SET epoch = epoch + 1")
        verdict = log.say(log.entry(0, 1, 1))
        assert verdict.status is Status.FULL
        assert "another relay has begun to write this log after epoch 1" in verdict.why
        assert isinstance(log.halted[0], RunHalted)
    reader = Store(Postgres(dsn, write=False), write=False)
    assert reader.pending() == []
    reader.close()


def test_a_lost_database_halts_the_relay(dsn: str, tmp_path: Path) -> None:
    import psycopg

    from fedshare.relay.postgres import Postgres

    with Log(tmp_path, Store(Postgres(dsn))) as log:
        log.admit(0, 1)
        log.until(0)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s",
                ("postgres",),
            )
        verdict = log.say(log.entry(0, 1, 1))
        assert verdict.status is Status.FULL
        assert log.halted
    with Log(tmp_path, Store(Postgres(dsn))) as log:
        assert log.say(log.entry(0, 1, 1)).status is Status.TAKEN


def test_a_dsn_that_leads_nowhere() -> None:
    pytest.importorskip("psycopg")
    from fedshare.relay.postgres import Postgres

    with pytest.raises(UserError, match="--postgres: cannot be used: "):
        Postgres("host=127.0.0.1 port=1 dbname=none connect_timeout=2")
