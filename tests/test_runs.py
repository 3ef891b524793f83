"""A run's folder: what it holds, that a killed run resumes to the same bits, that a changed bit is named."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import forked
import world
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.payload import Payload
from fedshare.runs import RunFolder, checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.state import digests

pytestmark = pytest.mark.long

SMALL = ["partition.clients=6", "clients_per_round=4", "model.hidden=[16]", "client.epochs=1", "checkpoint_every=2"]


def fedshare(*arguments: str) -> int:
    """The command, in this process; its exit status."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Runs by their overrides, each made once."""
    base = tmp_path_factory.mktemp("runs")

    @cache
    def make(*overrides: str) -> RunFolder:
        folder = base / str(len(list(base.iterdir())))
        small = ["workers=0", *SMALL, "rounds=5", *overrides]
        assert fedshare("run", f"folder={folder}", *small) == 0
        return RunFolder.open(folder)

    return make


def copy(run: RunFolder, to: Path) -> RunFolder:
    subprocess.run(["cp", "-r", run.path, to], check=True)
    return RunFolder.open(to)


Runs = Callable[..., RunFolder]


def test_a_run_leaves_what_a_person_needs(run: Runs) -> None:
    folder = run()
    rows = folder.rows()
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    last = rows[-1]
    assert {"accuracy", "accuracy_mean", "accuracy_worst10", "loss", "train_loss", "examples"} <= last.keys()
    assert len(last["per_client"]["accuracy"]) == 6
    assert len(last["clients"]) == 4
    assert {"download", "train", "aggregate", "digest", "evaluate"} == last["seconds"].keys()
    model = load_file(folder.model)
    size = sum(tensor.nbytes for tensor in model.values())
    assert last["bytes_up"] == last["bytes_down"] == 4 * size
    assert last["accuracy"] > 0.5
    for plot in ("partition.svg", "accuracy.svg"):
        assert (folder.path / plot).read_text().startswith("<?xml")
    assert checkpoint.rounds(folder.checkpoints) == [5, 4], "the last two are kept"
    loaded = checkpoint.load(folder.checkpoints, 5)
    assert digests({"params": model}) == digests({"params": loaded.server["params"]})
    config = folder.config.read_text()
    assert "${" not in config
    assert "seed: 0" in config
    assert last["digest"] == folder.links()[-1].digest


def test_metrics_add_up(run: Runs) -> None:
    for row in run().rows():
        clients = row["per_client"]
        weights = clients["examples"].values()
        assert sum(weights) == 355, "every test example of the digits counts once"
        weighted = sum(a * n for a, n in zip(clients["accuracy"].values(), weights, strict=True)) / 355
        assert row["accuracy"] == pytest.approx(weighted)
        assert row["accuracy_worst10"] == pytest.approx(min(clients["accuracy"].values()))


@pytest.mark.process
def test_the_same_twice_is_equal_and_another_seed_is_not(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, again, other = run(), tmp_path / "again", run("seed=1")
    assert fedshare("run", f"folder={again}", "workers=2", *SMALL, "rounds=5") == 0
    capsys.readouterr()
    assert fedshare("verify", str(whole.path), str(again)) == 0
    assert capsys.readouterr().out.startswith("equal: 5 rounds, digest ")
    assert fedshare("verify", str(whole.path), str(other.path)) == 1
    difference = capsys.readouterr().out
    assert difference.startswith("differ first in round 1: server: params/")
    assert difference.endswith("; so do their configs: seed: 0 | seed: 1\n")
    assert fedshare("verify", str(whole.path)) == 0
    assert capsys.readouterr().out.startswith("whole: 5 rounds")


def test_a_shorter_run_is_said_to_be_one(run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = copy(run(), tmp_path / "short")
    short.rewind(3)
    for round in (5, 4):
        (short.checkpoints / f"round-{round:06d}.json").unlink()
    assert fedshare("verify", str(run().path), str(short.path)) == 1
    assert "equal up to round 3" in capsys.readouterr().out


def test_a_run_is_whole_whose_last_upload_of_a_client_was_dropped(
    run: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """What such a client remembers is in the checkpoint, and no link tells of it."""
    spoilt = run("strategy=ditto", "attack=non_finite", "attack.adversaries=[1]", "clients_per_round=6")
    assert all("1" in row["dropped"] for row in spoilt.rows())
    last = checkpoint.latest(spoilt.checkpoints, print)
    assert last is not None
    assert last.clients[1]
    capsys.readouterr()
    assert fedshare("verify", str(spoilt.path)) == 0
    assert capsys.readouterr().out.startswith("whole: 5 rounds")


def test_nobody_else_can_lock_a_run(run: Runs) -> None:
    lock = run().path / ".lock"
    assert lock.stat().st_mode & 0o777 == 0o600, "who can read it could keep a run from being resumed"


@pytest.mark.process
@pytest.mark.parametrize("strategy", ["fedavg", "local"])
@pytest.mark.parametrize("moment", ["train", "save"])
def test_kill_9_then_resume_gives_the_same_bits(run: Runs, tmp_path: Path, strategy: str, moment: str) -> None:
    """Killed in the middle of round 4, or between the halves of the checkpoint after it; the last whole one is of 2."""
    folder = tmp_path / "killed"
    program = (
        f"import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from fedshare import client\n"
        "from fedshare.runs import checkpoint\n"
        "from fedshare.experiments.cli import main\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    if moment == "train":
        program += (
            "fit = client.Client.fit\n"
            "def fatal(self, round, names=None):\n"
            "    result = fit(self, round, names)\n"
            "    return die() if round == 4 and self.id >= 3 else result\n"
            "client.Client.fit = fatal\n"
        )
    else:
        program += (
            "write = checkpoint.write_atomically\n"
            "checkpoint.write_atomically = lambda path, data: (\n"
            "    die() if path.name == 'round-000004.json' else write(path, data))\n"
        )
    program += "main(sys.argv[1:])"
    small = ["workers=0", *SMALL, "rounds=5", f"strategy={strategy}"]
    killed = forked.run("-c", program, "run", f"folder={folder}", *small, timeout=world.PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint.rounds(folder / "checkpoints") == [2]
    assert fedshare("resume", str(folder)) == 0
    whole = run(f"strategy={strategy}")
    assert fedshare("verify", str(whole.path), str(folder)) == 0
    untimed = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in r.rows()] for r in (whole, RunFolder(folder))
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.process
def test_kill_9_with_workers_leaves_no_process_behind_and_resumes(run: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "fedshare", "run", f"folder={folder}", "workers=2", *SMALL, "rounds=500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if line.split()[:1] == ["3"]:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(children) >= 2
    deadline = time.monotonic() + world.PATIENCE
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlived the run"
        time.sleep(0.05)
    done = len(RunFolder(folder).rows())
    assert fedshare("resume", str(folder), "--rounds", str(max(done, 5))) == 0
    links = RunFolder(folder).links()
    assert links[:5] == run().links()


@pytest.mark.process
def test_sigterm_ends_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["-m", "fedshare", "run", f"folder={folder}", "workers=0", *SMALL, "rounds=500"]
    process = forked.python(*command, stdout=subprocess.PIPE)
    assert process.stdout
    for line in process.stdout:
        if line.split()[:1] == ["2"]:
            process.terminate()
            break
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(world.PATIENCE) == 130
    assert re.search(rf"stopped; `fedshare resume {folder}` goes on after round \d+, its last checkpoint", rest)
    assert (folder / "accuracy.svg").exists()


def test_resume_of_a_whole_run_changes_nothing_and_can_make_it_longer(run: Runs, tmp_path: Path) -> None:
    folder = copy(run(), tmp_path / "copy")
    assert fedshare("resume", str(folder.path)) == 0
    assert folder.links() == run().links()
    assert fedshare("resume", str(folder.path), "--rounds", "7") == 0
    assert folder.links()[:5] == run().links()
    assert len(folder.rows()) == 7
    assert folder.links() == run("rounds=7").links()


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_in_a_clients_memory_is_found_and_named(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run("strategy=local")
    damaged = copy(whole, tmp_path / "damaged")
    states = checkpoint.load(damaged.checkpoints, 5).clients
    file = damaged.checkpoints / "round-000005.safetensors"
    needle = states[3]["params"]["head.weight"].numpy().tobytes()
    flip(file, file.read_bytes().index(needle) + 5)
    capsys.readouterr()
    assert fedshare("verify", str(whole.path), str(damaged.path)) == 1
    assert f"{damaged.path}: round 5: client 3: params/head.weight" in capsys.readouterr().out


def test_a_bit_flipped_in_memory_is_found_and_named(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cosmic ray hits client 2's model after it trained in round 3: all later rounds differ, and round 3 is named."""
    whole = run("strategy=local", "clients_per_round=null")
    from fedshare.strategies.local import Local

    train = Local.train

    def struck(self: Local, client: world.Population, round: int, download: Payload) -> object:
        upload = train(self, client, round, download)  # type: ignore[arg-type]
        if (client.id, round) == (2, 3):  # type: ignore[attr-defined]
            client.state["params"]["head.bias"].view(torch.int32)[4] ^= 1  # type: ignore[attr-defined]
        return upload

    monkeypatch.setattr(Local, "train", struck)
    other = tmp_path / "struck"
    arguments = ["workers=0", *SMALL, "rounds=5", "strategy=local", "clients_per_round=null"]
    assert fedshare("run", f"folder={other}", *arguments) == 0
    capsys.readouterr()
    assert fedshare("verify", str(whole.path), str(other)) == 1
    assert capsys.readouterr().out == "differ first in round 3: client 2: params/head.bias\n"


FILES = ["digests.jsonl", "metrics.jsonl", "model.safetensors"]
FILES += ["checkpoints/round-000005.safetensors", "checkpoints/round-000004.json"]


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("file", FILES)
def test_any_flipped_byte_of_a_proof_is_found(run: Runs, tmp_path: Path, file: str, bit: int) -> None:
    damaged = copy(run(), tmp_path / "damaged")
    path = damaged.path / file
    if file == "metrics.jsonl":  # only its digests are part of the proof
        offsets = [path.read_bytes().index(b'"digest"') + 20, path.read_bytes().index(b'"round"') + 3]
    else:
        size = path.stat().st_size
        offsets = list(range(size // 7, size, size // 5))
    for offset in offsets:
        flip(path, offset, bit)
        assert fedshare("verify", str(damaged.path)) in (1, 2), f"byte {offset}"
        flip(path, offset, bit)
    assert fedshare("verify", str(damaged.path)) == 0


@pytest.mark.parametrize("line", ["{}", "5", '{"round": "one"}', "\x80"])
@pytest.mark.parametrize("file", ["metrics.jsonl", "digests.jsonl"])
def test_a_garbled_line_is_named_and_nothing_is_lost(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, line: str
) -> None:
    damaged = copy(run(), tmp_path / "damaged")
    path = damaged.path / file
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line.encode("latin-1") + b"\n", *lines[3:]]))
    before = {path: path.read_bytes() for path in damaged.path.rglob("*") if path.is_file()}
    for command in ("verify", "resume"):
        capsys.readouterr()
        assert fedshare(command, str(damaged.path)) == 2
        assert f"{path}: line 3 is damaged: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in damaged.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("rounds", ["0", "-3"])
def test_resume_refuses_an_impossible_end_and_loses_nothing(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], rounds: str
) -> None:
    folder = copy(run(), tmp_path / "copy")
    for path in folder.checkpoints.iterdir():
        path.unlink()
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert fedshare("resume", str(folder.path), "--rounds", rounds) == 2
    assert capsys.readouterr().err == f"fedshare: rounds={rounds}: must be at least 1\n"
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_manifest_that_names_another_round_is_damaged(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(run(), tmp_path / "copy")
    path = folder.checkpoints / "round-000005.json"
    path.write_text(path.read_text().replace('"round": 5', '"round": 4'))
    assert fedshare("verify", str(folder.path)) == 1
    assert "damaged: its round is 4" in capsys.readouterr().out
    assert fedshare("resume", str(folder.path)) == 0
    assert folder.links() == run().links()


def test_a_run_without_its_versions_can_be_resumed(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(run(), tmp_path / "copy")
    folder.versions.unlink()
    folder.seals.path.unlink()
    assert fedshare("resume", str(folder.path)) == 0
    assert "other versions" in capsys.readouterr().err


def test_a_config_that_lacks_a_key_is_damaged(run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(run(), tmp_path / "copy")
    folder.config.write_text(folder.config.read_text().replace("seed: 0\n", ""))
    assert fedshare("resume", str(folder.path)) == 2
    assert capsys.readouterr().err == f"fedshare: {folder.config} is damaged: it lacks seed\n"


@pytest.mark.parametrize("text", ["- a list", "rounds: [", "5"])
def test_a_config_that_is_none_is_damaged(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    folder = copy(run(), tmp_path / "copy")
    folder.config.write_text(text)
    assert fedshare("resume", str(folder.path)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fedshare: {folder.config} is damaged: ")
    assert err.count("\n") == 1


def test_what_a_crash_left_behind_is_swept_up(run: Runs, tmp_path: Path) -> None:
    folder = copy(run(), tmp_path / "copy")
    strays = [folder.path / ".config.yaml.1.tmp", folder.checkpoints / ".round-000007.safetensors.1.tmp"]
    strays.append(folder.checkpoints / "round-000001.safetensors")
    for stray in strays:
        stray.write_bytes(b"half")
    assert fedshare("resume", str(folder.path), "--rounds", "6") == 0
    assert not any(stray.exists() for stray in strays)
    assert checkpoint.rounds(folder.checkpoints) == [6, 5]


def test_a_checkpoint_holds_thousands_of_clients_with_many_tensors(tmp_path: Path) -> None:
    clients = {client: {f"tensor {i}": torch.full((1,), client) for i in range(40)} for client in range(2000)}
    checkpoint.save(tmp_path, Checkpoint(1, "d", {}, clients))
    header = int.from_bytes((tmp_path / "round-000001.safetensors").read_bytes()[:8], "little")
    assert header < 1_000_000
    loaded = checkpoint.load(tmp_path, 1)
    assert loaded.clients.keys() == clients.keys()
    assert loaded.clients[1999]["tensor 39"].tolist() == [1999]


def test_resume_uses_the_checkpoint_before_a_damaged_one(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy(run(), tmp_path / "damaged")
    newest = damaged.checkpoints / "round-000005.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert fedshare("resume", str(damaged.path)) == 0
    warning = capsys.readouterr().err
    assert "round-000005.safetensors is damaged: it has" in warning
    assert warning.endswith("; using round 4\n")
    assert damaged.links() == run().links()


def test_resume_refuses_when_every_checkpoint_is_damaged(
    run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy(run(), tmp_path / "damaged")
    for path in damaged.checkpoints.glob("*.safetensors"):
        path.write_bytes(b"")
    before = damaged.links()
    assert fedshare("resume", str(damaged.path)) == 2
    assert "there is no other" in capsys.readouterr().err
    assert damaged.links() == before


def test_resume_refuses_a_run_that_is_running(run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(run(), tmp_path / "copy")
    with folder.lock():
        assert fedshare("resume", str(folder.path)) == 2
    assert "another process is running this run" in capsys.readouterr().err


def test_resume_warns_of_other_versions(run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(run(), tmp_path / "copy")
    (folder.path / "versions.json").write_text('{"torch": "1.0"}\n')
    folder.seals.path.unlink()
    assert fedshare("resume", str(folder.path)) == 0
    assert "made with other versions, so the bits may differ" in capsys.readouterr().err


def test_a_torn_last_line_does_not_count(run: Runs, tmp_path: Path) -> None:
    folder = copy(run(), tmp_path / "copy")
    for path in (folder.metrics, folder.links_file):
        path.write_text(path.read_text()[:-20])
    assert len(folder.rows()) == len(folder.links()) == 4
    folder.rewind(4)
    assert folder.metrics.read_text().endswith("}\n")


def test_a_newer_checkpoint_format_is_refused(run: Runs, tmp_path: Path) -> None:
    folder = copy(run(), tmp_path / "copy")
    path = folder.checkpoints / "round-000005.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(UserError, match="has format 2; this version reads up to 1"):
        checkpoint.load(folder.checkpoints, 5)


@dataclass
class Failure:
    at: str

    def __call__(self, path: Path, data: bytes) -> None:
        if path.suffix == self.at:
            raise OSError(28, "No space left on device")
        path.write_bytes(data if isinstance(data, bytes) else data.encode())  # type: ignore[attr-defined]


@pytest.mark.parametrize("at", [".safetensors", ".json"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    first = Checkpoint(1, "d", {"w": torch.ones(3)}, {0: {"n": 1}})
    checkpoint.save(tmp_path, first)
    monkeypatch.setattr(checkpoint, "write_atomically", Failure(at))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, Checkpoint(2, "e", {"w": torch.zeros(3)}, {}))
    found = checkpoint.latest(tmp_path, warn=lambda line: pytest.fail(line))
    assert found is not None
    assert (found.round, found.clients) == (1, {0: {"n": 1}})


@pytest.mark.parametrize(
    ("partition", "line"),
    [
        (["partition=iid"], ""),
        (
            ["partition=pathological", "partition.classes_per_client=4"],
            "training examples are given to nobody, and of ",
        ),
        (["partition=rffl_uniform", "partition.samples=100"], "training examples are given to nobody\n"),
    ],
)
def test_a_run_says_what_its_partition_gives_to_nobody(
    partition: list[str], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["model=logistic", "partition.clients=2", "clients_per_round=null", "rounds=1", "client.epochs=1"]
    assert fedshare("run", *partition, *given, "workers=0", f"folder={tmp_path / 'run'}") == 0
    said = capfd.readouterr().out
    assert line in said
    assert said.count("to nobody") == bool(line)
