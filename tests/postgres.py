"""A PostgreSQL cluster of the tests' own, where its programs are."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from deployed import free_port

_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def program(name: str) -> str | None:
    return shutil.which(name) or next((str(place / name) for place in _PLACES if (place / name).exists()), None)


@contextmanager
def cluster() -> Iterator[str]:
    """Its DSN; skips the test where there is no PostgreSQL, or nobody to run it as."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'fedshare[postgres]'")
    initdb, postgres = program("initdb"), program("pg_ctl")
    if not initdb or not postgres:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    user: str | None = None
    if os.geteuid() == 0:  # it does not run as root
        with suppress(KeyError):
            user = next(name for name in ("postgres", "nobody") if pwd.getpwnam(name))
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # pytest's own are for this user alone
        if user:
            shutil.chown(folder, user)
        yield from _running(Path(folder), user, initdb, postgres)


def _running(folder: Path, user: str | None, initdb: str, postgres: str) -> Iterator[str]:
    data, port = folder / "data", free_port()

    def run(*command: str) -> None:
        done = subprocess.run(
            command, user=user, cwd=folder, capture_output=True, text=True, timeout=120, env=_environ()
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run(initdb, "-D", str(data), "-U", "tests", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c shared_buffers=16MB"
    run(postgres, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"host=127.0.0.1 port={port} user=tests dbname=postgres"
    finally:
        run(postgres, "-D", str(data), "-m", "immediate", "stop")


def _environ() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/tmp"}
