"""An app that knows only Flower, on Flower's own SuperLink and SuperNodes: gRPC, TLS, node authentication."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")

import world
from fleet import Fleet


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(world.ROOT / "tests" / "quickstart", tmp_path_factory.mktemp("apps") / "quickstart")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, app: Path) -> Iterator[str]:
    with Fleet(tmp_path_factory.mktemp("fleet"), 3) as fleet:
        yield fleet.run(app, {"min-nodes": 3, "fraction-evaluate": 0.0, "lr": 0.2}, timeout=240)


def test_a_flower_app_runs_on_a_fleet(log: str) -> None:
    assert log.count("Received 3 results and 0 failures") == 3
    found = re.search(r"quickstart: after 3 rounds, accuracy (\d\.\d+), loss (\d\.\d+)", log)
    assert found, log
    assert float(found[1]) > 0.8


def test_flwr_run_leaves_the_pyproject_as_it_was(log: str, app: Path) -> None:
    ours = world.ROOT / "tests" / "quickstart" / "pyproject.toml"
    assert (app / "pyproject.toml").read_bytes() == ours.read_bytes()
