"""A short soak of peers among faults, and whether its checks see what they are for."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import world
from fedshare.runs import checkpoint
from fedshare.state import State

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    folder = str(world.ROOT / "benchmarks")
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location("peers_soak", world.ROOT / "benchmarks" / "peers_soak.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def played(soak: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("soak")
    options = ["--minutes", "0.15", "--peers", "3", "--rounds", "40", "--seed", "5", "--folder", str(folder)]
    assert soak.main(options) == 0
    return [folder / "part-0" / f"run-{peer}" for peer in range(3)]


def lose(state: State) -> None:
    state["flood"]["known"][3, 1] = False


def take_twice(state: State) -> None:
    state["flood"]["sums"] += 1


def change(state: State) -> None:
    state["flood"]["codes"][3, 1, 0] ^= 1


@pytest.mark.parametrize(
    ("spoil", "flaw"),
    [
        (lose, "peer 2 lacks 1 of"),
        (take_twice, "peer 2: its sums are not those of its entries, each taken once"),
        (change, "peer 2 lacks 1 of"),
    ],
)
def test_a_ledger_that_is_wrong_is_found(
    soak: ModuleType, played: list[Path], tmp_path: Path, spoil: Callable[[State], None], flaw: str
) -> None:
    checks = soak.soak_checks
    state = checks.on_disk(played[0])
    acknowledged, step = checks.ledger_of(state), soak.step_of([*soak.CONFIG, "partition.clients=3"], 3)
    assert checks.flaws(played, acknowledged, step) == []
    spoilt = shutil.copytree(played[2], tmp_path / "run-2")
    held = checkpoint.latest(spoilt / "checkpoints", print)
    assert held
    spoil(held.server)
    checkpoint.save(spoilt / "checkpoints", held)
    assert any(flaw in line for line in checks.flaws([*played[:2], spoilt], acknowledged, step))


def test_models_that_differ_are_found(soak: ModuleType, played: list[Path], tmp_path: Path) -> None:
    spoilt = shutil.copytree(played[2], tmp_path / "run-2")
    data = bytearray((spoilt / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (spoilt / "model.safetensors").write_bytes(data)
    step = soak.step_of([*soak.CONFIG, "partition.clients=3"], 3)
    assert "2 different models among 3 peers" in soak.soak_checks.flaws([*played[:2], spoilt], {}, step)
