"""The same apps, unchanged, where Flower's SuperNodes speak HTTP. `test_fleet.py` has all of it over gRPC."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import world
from fedshare.experiments.cli import main
from fedshare.runs import RunFolder, verify
from fedshare.transport.flower.private import why_no_grpc_fleet
from fleet import Fleet, copy_of_fedshare

NODES, PATIENCE = 3, 900.0  # seconds for all runs
CONFIG = ["strategy=fedcac", "data=digits", "model=logistic", f"partition.clients={NODES}", "rounds=2"]
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not why_no_grpc_fleet(), reason="this flwr's SuperNodes speak gRPC: see test_fleet.py"),
]

Outcomes = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apps")
    shutil.copytree(world.ROOT / "tests" / "quickstart", folder / "quickstart")
    copy_of_fedshare(folder / "fedshare")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, apps: Path, run: Path) -> Iterator[Outcomes]:
    """Status and log of each run, by app."""
    folder = tmp_path_factory.mktemp("fleet")
    extras = {f"client-{client}": {"state-dir": str(folder / f"state-{client}")} for client in range(NODES)}
    configs: dict[str, dict[str, str | int | float | bool]] = {
        "quickstart": {"min-nodes": NODES, "fraction-evaluate": 0.0, "lr": 0.2},
        "fedshare": {"overrides": " ".join(CONFIG), "folder": str(run)},
    }
    with Fleet(folder, NODES, extras, preload=True) as fleet:
        started = {name: fleet.submit(apps / name, config) for name, config in configs.items()}
        deadline = time.monotonic() + PATIENCE
        yield {name: fleet.end(id, deadline - time.monotonic()) for name, id in started.items()}


def test_a_strategy_with_memory_equals_its_simulation(outcomes: Outcomes, run: Path, tmp_path: Path) -> None:
    status, log = outcomes["fedshare"]
    assert status == "finished:completed", log
    with pytest.raises(SystemExit) as ended:
        main(["run", *CONFIG, f"folder={tmp_path}", "workers=0"])
    assert not ended.value.code
    same, sentence = verify(RunFolder(run), RunFolder(tmp_path))
    assert same, sentence
    found, expected = RunFolder(run).rows(), RunFolder(tmp_path).rows()
    assert [row | {"seconds": 0} for row in found] == [row | {"seconds": 0} for row in expected]


def test_an_app_that_knows_only_flower(outcomes: Outcomes) -> None:
    status, log = outcomes["quickstart"]
    assert status == "finished:completed", log
    found = re.search(r"quickstart: after 3 rounds, accuracy (\d\.\d+)", log)
    assert found, log
    assert float(found[1]) > 0.8


@pytest.mark.parametrize("app", ["quickstart", "fedshare"])
def test_flwr_run_leaves_the_pyproject_as_it_was(app: str, apps: Path, outcomes: Outcomes) -> None:
    ours = world.ROOT if app == "fedshare" else world.ROOT / "tests" / app
    assert (apps / app / "pyproject.toml").read_bytes() == (ours / "pyproject.toml").read_bytes()
