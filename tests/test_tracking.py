"""Tracking never stops a run, asks nothing, and writes nowhere but into the run's folder."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedshare.errors import UserError
from fedshare.experiments import tracking
from world import PATIENCE

CONF = Path(tracking.__file__).parent / "conf" / "tracking"
ROW = {
    "round": 1,
    "accuracy": 0.5,
    "loss": float("nan"),
    "clients": [1, 5],
    "per_client": {"accuracy": {str(client): client / 1000 for client in range(1000)}},
    "seconds": {"train": 3.1, "save": 0.0},
    "dropped": {"7": "NaN"},
    "digest": "ab" * 32,
}
STUB = """
import sys, time
class Error(Exception): pass
class Settings:
    def __init__(self, **fields): pass
class Run:
    url, offline, disabled, dir = "https://example.org/run", False, False, "x"
    def define_metric(self, *args, **fields): assert (args, fields) == (("*",), {"step_metric": "round"})
    def log(self, record): print("logged", sorted(record))
    def finish(self, exit_code): print("finished with", exit_code)
def Histogram(np_histogram): return np_histogram
def init(**fields):
    print("init", {key: fields[key] for key in ("project", "group", "name", "mode", "config")})
    return Run()
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Put a module named wandb, with some more code at its end, before the real one."""
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")

    def write(code=""):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "wandb.py").write_text(STUB + code)

    return write


def track(tracker, folder, rounds=3, pause=0.0):
    """A run of `rounds`; what was noted."""
    folder.mkdir(exist_ok=True)
    notes = []
    tracker.start({"seed": 1}, "name", "sweep", folder, notes.append)
    for number in range(1, rounds + 1):
        tracker.log(ROW | {"round": number})
        time.sleep(pause)
    tracker.finish()
    tracker.log(ROW)  # after the end: nothing
    return notes


def test_the_configs_are_the_dataclasses():
    none, wandb = (instantiate(OmegaConf.load(CONF / f"{name}.yaml")) for name in ("none", "wandb"))
    assert none == tracking.NoTracker()
    assert wandb == tracking.Wandb()


def test_no_tracker_does_nothing(tmp_path):
    assert track(tracking.NoTracker(), tmp_path / "run") == []
    assert list((tmp_path / "run").iterdir()) == []


def test_scalars_are_few_whatever_the_number_of_clients():
    record = tracking.scalars(ROW)
    histogram = record.pop("accuracy_of_clients")
    assert sum(histogram["counts"]) == 1000
    assert len(histogram["edges"]) == 21
    assert record.pop("loss") != 0
    assert record == {
        "round": 1, "accuracy": 0.5, "clients": 2, "dropped": 1, "seconds/train": 3.1, "seconds/save": 0.0,
    }  # fmt: skip
    among_peers = {"consensus": 0.2, "average": {"accuracy": 0.6, "loss": 1.0}, "bytes_by_peer": {"0": 8}}
    assert tracking.scalars(among_peers) == {"consensus": 0.2, "average/accuracy": 0.6, "average/loss": 1.0}
    assert tracking.scalars({"round": 2, "dropped": {}, "loss": None}) == {"round": 2, "dropped": 0}


@pytest.mark.process
def test_offline_writes_into_the_folder_alone(tmp_path, monkeypatch):
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    notes = track(tracking.Wandb(mode="auto", deadline=PATIENCE), tmp_path / "run")
    assert len(notes) == 1
    assert notes[0].startswith("wandb: offline (")  # there is no account, and nobody was asked
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert notes[0].endswith(f"wandb sync {run}")
    (data,) = run.glob("*.wandb")
    assert data.stat().st_size > 500
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "home").iterdir()) == []

    track(tracking.Wandb(mode="offline"), tmp_path / "run")  # resumed in its folder: the same id
    first, second = (path.name.rsplit("-", 1)[1] for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert first == second


@pytest.mark.process
def test_one_run_with_its_rows(tmp_path, stub):
    stub()
    tracker = tracking.Wandb(project="p", mode="online", deadline=PATIENCE)
    assert track(tracker, tmp_path / "run", rounds=2) == ["wandb: https://example.org/run"]
    lines = (tmp_path / "run" / "tracking.log").read_text().splitlines()
    init = {"project": "p", "group": "sweep", "name": "name", "mode": "online", "config": {"seed": 1}}
    assert lines[0] == f"init {init}"
    assert [line[:9] for line in lines[1:3]] == ["logged ['"] * 2
    assert lines[3] == "finished with 0"
    track(tracker, tmp_path / "next", rounds=1)  # the next job of a sweep is a run of its own
    assert (tmp_path / "next" / "tracking.log").read_text().count("init") == 1


@pytest.mark.process
def test_a_run_that_did_not_complete_is_shown_as_failed(tmp_path, stub):
    stub()
    tracker = tracking.Wandb(group="mine")
    tracker.start({}, "name", "sweep", tmp_path, print)
    tracker.finish(completed=False)
    log = (tmp_path / "tracking.log").read_text()
    assert "finished with 1" in log
    assert "'group': 'mine'" in log


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('broken at import')", "broken at import"),
        ("def init(**fields): raise ValueError('broken at init')", "broken at init"),
        ("def log(*args): raise ValueError('broken at log\\nsecond line')\nRun.log = log", "broken at log"),
        ("def finish(*args, **fields): raise ValueError('broken at finish')\nRun.finish = finish", "broken at finish"),
        ("import os\ndef init(**fields): os._exit(7)", "ended with status 7"),
    ],
)
def test_a_broken_wandb_is_one_line(tmp_path, stub, code, reason):
    stub(code)
    notes = track(tracking.Wandb(mode="online", deadline=PATIENCE), tmp_path / "run")
    assert notes == [f"wandb: {reason}; tracking stopped, the run goes on"]


@pytest.mark.process
def test_a_wandb_that_broke_long_ago_is_noticed_while_the_run_goes_on(tmp_path, stub):
    stub("raise RuntimeError('broken')")
    tracker = tracking.Wandb(deadline=PATIENCE)
    notes = []
    tracker.start({}, "name", None, tmp_path, notes.append)
    until = time.monotonic() + PATIENCE
    while not notes and time.monotonic() < until:
        tracker.log(ROW)
        time.sleep(0.02)
    tracker.finish()
    assert notes == ["wandb: broken; tracking stopped, the run goes on"]


@pytest.mark.process
@pytest.mark.parametrize(
    "code",
    ["time.sleep(3600)", "def finish(*args, **fields): time.sleep(3600)\nRun.finish = finish"],
)
def test_a_wandb_that_hangs_costs_the_deadline_at_most(tmp_path, stub, code):
    stub(code)
    notes = track(tracking.Wandb(deadline=1.0), tmp_path / "run", rounds=300)  # more rows than a pipe holds
    log = tmp_path / "run" / "tracking.log"
    assert notes == [f"wandb: not finished after 1 s, see {log}; tracking stopped, the run goes on"]


@pytest.mark.process
def test_more_rows_than_a_pipe_holds_all_arrive(tmp_path, stub):
    stub("time.sleep(0.3)")
    track(tracking.Wandb(deadline=PATIENCE), tmp_path / "run", rounds=500)
    assert (tmp_path / "run" / "tracking.log").read_text().count("logged") == 500


@pytest.mark.process
def test_wandb_can_ask_no_question(tmp_path, stub):
    stub("print('read', repr(sys.stdin.read()), sys.stdin.isatty())")
    code = """if True:
        import pathlib, sys
        from fedshare.experiments import tracking
        tracker = tracking.Wandb()
        tracker.start({}, "name", None, pathlib.Path(sys.argv[1]))
        tracker.finish()
    """
    main, terminal = pty.openpty()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    try:
        os.write(main, b"an answer\n")
        command = [sys.executable, "-c", code, str(tmp_path)]
        subprocess.run(command, stdin=terminal, env=env, check=True, timeout=PATIENCE)
    finally:
        os.close(main)
        os.close(terminal)
    assert "read '' False" in (tmp_path / "tracking.log").read_text()


def test_wandb_asked_for_and_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install wandb, or choose tracking=none"):
        tracking.Wandb()


def test_a_folder_named_wandb_is_not_wandb(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="not installed"):
        tracking.Wandb()


@pytest.mark.parametrize("fields", [{"mode": "on"}, {"deadline": 0}])
def test_bad_settings_are_refused_in_one_line(fields):
    with pytest.raises(UserError, match=r"^(mode|deadline)=.*must be [^\n]*$"):
        tracking.Wandb(**fields)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, stub):
    stub()
    notes = []
    tracker = tracking.Wandb()
    tracker.start({}, "name", None, tmp_path / "missing", notes.append)
    tracker.log(ROW)
    tracker.finish()
    assert len(notes) == 1
    assert notes[0].endswith("this run is not tracked")
