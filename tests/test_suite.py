"""What conftest.py does for the suite: no deadline, and a list of the skipped tests that pytest can read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import world

SKIPPING = """
import pytest
needs = pytest.mark.skipif(not __import__("os").environ.get("EXTRA"), reason="needs fedshare[extra]")

def test_here(): ...

@needs
def test_marked(): ...

@pytest.mark.parametrize("case", ["a b", pytest.param("c::d [e]", marks=needs), pytest.param("f", marks=needs)])
def test_cases(case): ...

@pytest.fixture
def extra():
    if not __import__("os").environ.get("EXTRA"):
        pytest.skip("needs fedshare[extra]")

def test_fixture(extra): ...
"""
WHOLE = 'import os, pytest\nif not os.environ.get("EXTRA"): pytest.skip("needs it", allow_module_level=True)\n'
WHOLE += "def test_one(): ...\ndef test_two(): ...\n"


def run(folder: Path, *arguments: str, **environ: str) -> str:
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=given | environ, capture_output=True, text=True, timeout=world.PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.process
@pytest.mark.parametrize("how", [[], ["--numprocesses", "2", "--dist", "loadfile"]], ids=["one process", "xdist"])
def test_what_was_skipped_is_run_again_and_nothing_else(how: list[str], tmp_path: Path) -> None:
    for name in ("conftest.py", "forked.py"):
        shutil.copy(world.ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_parts.py").write_text(SKIPPING)
    (tmp_path / "test_whole.py").write_text(WHOLE)
    assert run(tmp_path, *how).startswith("2 passed, 5 skipped in ")
    skipped = tmp_path / ".pytest_cache" / "d" / "skipped" / "tests"
    assert skipped.read_text().splitlines() == [
        "test_parts.py::test_cases[c::d [e]]",
        "test_parts.py::test_cases[f]",
        "test_parts.py::test_fixture",
        "test_parts.py::test_marked",
        "test_whole.py",
    ]
    assert run(tmp_path, *how, f"@{skipped}", EXTRA="1").startswith("6 passed in ")
    assert skipped.read_text() == ""


def test_no_property_fails_by_the_clock() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check
