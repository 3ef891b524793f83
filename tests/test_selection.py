"""What is selected, is by validation examples: the best round, the end of a run, a sweep's choice."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from test_runs import fedshare

import world
from deployed import assert_equal, simulated
from fedshare.experiments.cli import main
from fedshare.runs import RunFolder
from optional import needs

pytestmark = pytest.mark.long

FEW = ["model=logistic", "partition.clients=3", "client.epochs=1", "workers=0"]


def best_round(folder: Path, metric: str, better: Any) -> int:
    """By the rows alone: the first of the best."""
    values = [row["validation"][metric] for row in RunFolder(folder).rows()]
    return 1 + values.index(better(values))


@pytest.mark.parametrize(("metric", "better"), [("accuracy", max), ("loss", min)])
def test_the_best_round_is_kept_by_its_validation(metric: str, better: Any, tmp_path: Path) -> None:
    given = [*FEW, "rounds=6", "validation=0.2", "client.optimizer.lr=0.5"]
    folder = simulated(tmp_path / "run", *given, f"best={metric}")
    round = best_round(folder, metric, better)
    only = simulated(tmp_path / "only", *given, f"rounds={round}")
    best, there = load_file(folder / "best.safetensors"), load_file(only / "model.safetensors")
    assert best.keys() == there.keys()
    assert all(best[name].equal(there[name]) for name in best)


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = simulated(tmp_path / "run", *FEW, "rounds=9", "validation=0.2", "patience=2", "client.optimizer.lr=0")
    assert [row["round"] for row in RunFolder(folder).rows()] == [1, 2, 3]
    assert "ends after round 3: 2 rounds without a better accuracy" in capsys.readouterr().out
    assert fedshare("resume", str(folder)) == 0
    assert len(RunFolder(folder).rows()) == 3, "and it stays ended"


def test_a_run_that_was_stopped_selects_as_one_that_was_not(tmp_path: Path) -> None:
    given = [*FEW, "validation=0.2", "best=accuracy", "checkpoint_every=2"]
    whole = simulated(tmp_path / "whole", *given, "rounds=6")
    parts = simulated(tmp_path / "parts", *given, "rounds=4")
    assert fedshare("resume", str(parts), "--rounds", "6") == 0
    assert_equal(parts, whole)
    with safe_open(parts / "best.safetensors", "pt") as mine, safe_open(whole / "best.safetensors", "pt") as theirs:
        assert mine.metadata() == theirs.metadata()
        assert all(mine.get_tensor(name).equal(theirs.get_tensor(name)) for name in sorted(theirs.keys()))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["best=accuracy"], "best=accuracy: goes by the validation examples: say validation=0.1"),
        (["patience=3"], "patience=3: goes by the validation examples: say validation=0.1"),
        (["best=acuracy", "validation=0.1"], "best=acuracy: no such metric; allowed: accuracy, loss"),
        (["validation=1.0"], "validation=1.0: "),
        (["validation=0.1", "patience=0"], "patience=0: "),
    ],
)
def test_nothing_to_select_by_is_one_line(
    given: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedshare("run", *FEW, *given, f"folder={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fedshare: {line}"), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def searched(tmp_path: Path, *given: str) -> int:
    sweep = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    search = ["client.optimizer.lr=interval(0.001,0.5)", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    return fedshare("run", "-m", *sweep, *search, *FEW, "rounds=2", *given)


@needs("optuna")
@pytest.mark.parametrize(
    ("metric", "direction", "better"),
    [(None, "maximize", max), ("accuracy", "maximize", max), ("loss", "minimize", min)],
)
def test_a_sweep_that_searches_goes_by_validation(
    metric: str | None, direction: str, better: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = [f"best={metric}"] if metric else []
    assert searched(tmp_path, "validation=0.2", f"hydra.sweeper.direction={direction}", *chosen) == 0
    values = {}
    for folder in sorted((tmp_path / "sweep").glob("[0-9]")):
        rows = RunFolder(folder).rows()
        values[OmegaConf.load(folder / "config.yaml").client.optimizer.lr] = better(
            row["validation"][metric or "accuracy"] for row in rows
        )
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert len(values) == 3
    assert found.best_value == better(values.values())
    assert values[found.best_params["client.optimizer.lr"]] == found.best_value


@needs("optuna")
@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["hydra.sweeper.direction=maximize"], "add validation=0.1"),
        (["hydra.sweeper.direction=minimize", "validation=0.1"], "accuracy is better higher: maximize"),
        (["hydra.sweeper.direction=maximize", "validation=0.1", "best=loss"], "loss is better lower: minimize"),
    ],
)
def test_a_search_without_an_objective_is_refused_before_its_first_job(
    given: list[str], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert searched(tmp_path, *given) == 2
    error = capfd.readouterr().err
    assert line in error
    assert error.count("fedshare: ") == 1
    assert not list((tmp_path / "sweep").glob("[0-9]"))


PICKY = """
from torch.nn.functional import cross_entropy
trials = []

def picky(outputs, targets):
    trials.append(1)
    if len(trials) > 8 and (targets == 9).any():
        raise ValueError("no nines here")
    return cross_entropy(outputs, targets)
"""


@pytest.mark.parametrize("halts", [False, True])
def test_a_client_that_raises_is_treated_alike_in_a_simulation_and_a_deployment(
    halts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picky_lab.py").write_text(PICKY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "state"))
    given = ["model=logistic", "partition=shards", "partition.clients=6", "client.epochs=1", "rounds=2"]
    given += [
        "task.loss={_target_: picky_lab.picky, _partial_: true}",
        f"on_client_error={'halt' if halts else 'drop'}",
    ]
    ends = []
    for name in ("simulated", "deployed"):
        folder = tmp_path / name
        if name == "simulated":
            command = ["run", *given, "workers=0", f"folder={folder}"]
        else:
            text = " ".join(each.replace(" ", "") for each in given)
            command = ["flower-run", str(world.ROOT), "--nodes", "6"]
            command += ["--run-config", f"overrides='{text}' folder=\"{folder}\""]
        with pytest.raises(SystemExit) as ended:
            main(command)
        ends.append(ended.value.code or 0)
        said = capsys.readouterr()
        assert "no nines here" in said.out + said.err
        rows = RunFolder(folder).rows() if not halts else []
        assert halts or all("no nines here" in why for row in rows for why in row["dropped"].values())
        assert halts or [bool(row["dropped"]) for row in rows] == [True, True]
    assert ends == ([3, 3] if halts else [0, 0])
