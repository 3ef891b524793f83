"""The README's examples run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import world

README = (world.ROOT / "README.md").read_text()
FILES = dict(re.findall(r"^`([\w/]+\.(?:py|yaml))`\n```(?:python|yaml)\n(.*?)^```", README, re.S | re.M))
PROGRAM = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "run_server" in block)


@pytest.mark.process
def test_adding_a_strategy_is_one_file_one_yaml_and_one_test(tmp_path: Path) -> None:
    assert [Path(name).parts[0] for name in FILES] == ["strategies", "experiments", "tests"]
    for folder in ("fedshare", "strategies", "experiments", "tests"):
        shutil.copytree(world.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    code = [line for line in FILES["strategies/fedavgm.py"].splitlines() if line and not line.startswith('"""')]
    assert len(code) <= 20
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*command: str) -> str:
        result = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * world.PATIENCE,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    tests = run(
        "-m", "pytest", "-p", "no:cacheprovider", "tests/test_fedavgm.py", "tests/test_contract.py", "-k", "fedavgm"
    )
    assert re.search(r"\b2\d passed", tests), tests
    rounds = run("-m", "fedshare", "run", "strategy=fedavgm", "strategy.momentum=0.5", "rounds=2", "workers=0")
    assert "fedavgm-digits-dirichlet" in rounds


@pytest.mark.process
def test_fedprox_and_scaffold_pass_the_contract_as_they_stand(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    fedprox = next(block for block in blocks if "class FedProx" in block)
    methods = next(block for block in blocks if block.startswith("# the methods of class Scaffold(FedAvg)"))
    imports = fedprox[fedprox.index("from") : fedprox.index("@dataclass")]
    more = "from fedshare.state import State\nfrom fedshare.strategy import Purpose\n"
    more += "from fedshare.tensors import Tensors, add, mean, parameters, subtract, zeros_like\n"
    head = "@dataclass(frozen=True)\nclass Scaffold(FedAvg):\n    lr: float = 0.05\n\n"
    for folder in ("fedshare", "strategies", "experiments", "tests"):
        shutil.copytree(world.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    files = {
        "strategies/fedprox.py": fedprox,
        "strategies/scaffold.py": imports + more + head + textwrap.indent(methods, "    "),
        "experiments/conf/strategy/fedprox.yaml": (
            "_target_: fedshare.strategies.fedprox.FedProx\nweighted: true\nmu: 0.01\n"
        ),
        "experiments/conf/strategy/scaffold.yaml": (
            "_target_: fedshare.strategies.scaffold.Scaffold\nweighted: true\n"
            "lr: ${oc.select:client.optimizer.lr,0.05}\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_contract.py", "-k"]
    result = subprocess.run(
        [*tests, "fedprox or scaffold"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=2 * world.PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\b[45]\d passed", result.stdout), result.stdout


@pytest.mark.process
def test_the_program_runs(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    program = [sys.executable, tmp_path / "program.py"]
    result = subprocess.run(program, capture_output=True, text=True, timeout=world.PATIENCE)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert float(lines[-1].split()[1]) > 0.5


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


def test_every_option_is_in_its_table() -> None:
    for path in (world.ROOT / "experiments" / "conf").glob("*/*.yaml"):
        assert re.search(rf"^\| `{path.parent.name}` \|.*`{path.stem}`", README, re.M), path
