"""A run's records: what is changed afterwards is found, named, and not gone on with; and whose key signs them."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import forked
import world
from fedshare import runs
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.rounds.chain import Link
from fedshare.runs import RunFolder, checkpoint, verify
from fedshare.runs.seals import Seal

pytestmark = pytest.mark.long

SMALL = ["partition.clients=4", "clients_per_round=3", "model=logistic", "client.epochs=1", "checkpoint_every=2"]
SMALL += ["workers=0", "rounds=4"]
OLDER = Path(__file__).parent / "older" / "run-0.1.0"

Capture = pytest.CaptureFixture[str]


def fedshare(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("records") / "run"
    assert fedshare("run", f"folder={folder}", *SMALL) == 0
    return RunFolder.open(folder)


@pytest.fixture
def run(whole: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder.open(shutil.copytree(whole.path, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def put(path: Path, *texts: str) -> None:
    path.write_text("".join(texts))


# What is changed is named, and a run is not gone on with


def raise_accuracy(run: RunFolder) -> None:
    first, second, third, fourth = lines(run.metrics)
    row = json.loads(third)
    put(run.metrics, first, second, json.dumps(row | {"accuracy": 0.999}) + "\n", fourth)


def spaced(run: RunFolder) -> None:
    put(run.metrics, *(line.replace(": ", ":  ", 1) for line in lines(run.metrics)))


def other_rate(run: RunFolder) -> None:
    config = OmegaConf.load(run.config)
    config.client.optimizer.lr = 0.5
    OmegaConf.save(config, run.config)


def other_torch(run: RunFolder) -> None:
    run.versions.write_text(json.dumps(run.made_with() | {"torch": "9.9"}))


def keep_rows(run: RunFolder, kept: tuple[int, ...]) -> None:
    put(run.metrics, *map(lines(run.metrics).__getitem__, kept))


def keep_seals(run: RunFolder, kept: tuple[int, ...]) -> None:
    put(run.seals.path, *map(lines(run.seals.path).__getitem__, kept))


def added(run: RunFolder) -> None:
    with run.metrics.open("a") as file:
        file.write(json.dumps(run.rows()[-1] | {"round": 5, "accuracy": 1.0}) + "\n")


def added_with_a_link(run: RunFolder) -> None:
    last = run.links()[-1]
    link = Link.extend(last.digest, 5, last.server, {})
    with run.links_file.open("a") as file:
        file.write(link.to_json() + "\n")
    with run.metrics.open("a") as file:
        file.write(json.dumps(run.rows()[-1] | {"round": 5, "digest": link.digest}) + "\n")


CHANGED: dict[str, tuple[Callable[[RunFolder], None], str]] = {
    "an accuracy": (raise_accuracy, "metrics.jsonl: the row of round 3 was changed since it was sealed"),
    "a space": (spaced, "metrics.jsonl: the row of round 1 was changed since it was sealed"),
    "the learning rate": (other_rate, "config.yaml was changed since it was sealed"),
    "a version": (other_torch, "versions.json was changed since it was sealed"),
    "no versions": (lambda run: run.versions.unlink(), "versions.json was changed since it was sealed"),
    "an added row": (added, "metrics.jsonl: the row of round 5 was added: no seal covers it"),
    "an added round": (added_with_a_link, "metrics.jsonl: the row of round 5 was added: no seal covers it"),
}
ROWS = {
    (0, 2, 3): "metrics.jsonl: the row of round 2 is missing",
    (1, 2, 3): "metrics.jsonl: the row of round 1 is missing",
    (0, 1, 2): "round 4: metrics.jsonl has no line of this round with its digest (differs from its recorded digest)",
    (0, 0, 1, 2, 3): "metrics.jsonl: line 2 is a second row of round 1",
    (0, 2, 1, 3): "metrics.jsonl: the row of round 2 is missing",
}
SEALS = {  # line 0 is of the config
    (): "seals.jsonl is damaged: it seals no config",
    (1, 2, 3, 4): "seals.jsonl: line 1 does not follow from the lines before",
    (0, 1, 3, 4): "seals.jsonl: line 3 does not follow from the lines before",
    (0, 2, 1, 3, 4): "seals.jsonl: line 2 does not follow from the lines before",
    (0, 1, 1, 2, 3, 4): "seals.jsonl: line 3 does not follow from the lines before",
    (0, 1, 2, 3): "metrics.jsonl: the row of round 4 was added: no seal covers it",
}
CHANGED |= {f"rows {kept}": (partial(keep_rows, kept=kept), line) for kept, line in ROWS.items()}
CHANGED |= {f"seals {kept}": (partial(keep_seals, kept=kept), line) for kept, line in SEALS.items()}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_was_changed_is_named_and_not_gone_on_with(kind: str, run: RunFolder, capfd: Capture) -> None:
    change, line = CHANGED[kind]
    change(run)
    before = contents(run.path)
    capfd.readouterr()
    assert fedshare("verify", str(run.path)) == 1
    assert capfd.readouterr().out == f"{run.path}: {line}\n"
    for more in ([], ["--rounds", "6"]):
        assert fedshare("resume", str(run.path), *more) == 2
        out, err = capfd.readouterr()
        assert (out, err) == ("", f"fedshare: {run.path}: {line.removesuffix(' (differs from its recorded digest)')}\n")
    assert contents(run.path) == before


def test_a_doctored_run_equals_no_other(run: RunFolder, whole: RunFolder, capfd: Capture) -> None:
    raise_accuracy(run)
    capfd.readouterr()
    assert fedshare("verify", str(whole.path), str(run.path)) == 1
    assert capfd.readouterr().out.startswith(f"{run.path}: metrics.jsonl: the row of round 3 was changed")


@pytest.mark.parametrize("file", ["config.yaml", "versions.json", "metrics.jsonl", "seals.jsonl", "digests.jsonl"])
def test_any_flipped_bit_of_a_record_is_found(file: str, run: RunFolder) -> None:
    path = run.path / file
    data = path.read_bytes()
    draw = random.Random(file)
    places = [len(data) - 1, *(draw.randrange(len(data)) for _ in range(60))]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            assert not verify(run)[0], f"byte {place}"
        except UserError:
            continue
    path.write_bytes(data)
    assert verify(run)[0]


def test_seals_do_not_enter_the_comparison(run: RunFolder, whole: RunFolder) -> None:
    assert fedshare("resume", str(run.path), "--rounds", "4") == 0
    assert verify(run, whole)[1].startswith("equal: 4 rounds")
    (run.checkpoints / "round-000004.json").unlink()
    assert fedshare("resume", str(run.path)) == 0, "rounds 3 and 4 again, in other seconds"
    assert verify(run, whole)[1].startswith("equal: 4 rounds")
    assert run.seals.path.read_bytes() != whole.seals.path.read_bytes()


# A config that changes as it may


def kinds(run: RunFolder) -> list[int | str]:
    return [seal.round or "config" for seal in run.seals.read()]


def test_a_longer_run_seals_its_new_config(run: RunFolder, tmp_path: Path) -> None:
    assert kinds(run) == ["config", 1, 2, 3, 4]
    assert fedshare("resume", str(run.path), "--rounds", "6") == 0
    assert kinds(run) == ["config", 1, 2, 3, 4, "config", 5, 6]
    assert verify(run)[1].startswith("whole: 6 rounds")
    before = contents(run.path)
    other_rate(run)
    assert not verify(run)[0]
    run.config.write_bytes(before["config.yaml"])
    old = run.config.read_text().replace("rounds: 6", "rounds: 4")
    run.config.write_text(old)
    assert verify(run)[1] == f"{run.path}: config.yaml was changed since it was sealed", "an earlier one is another"


def test_a_run_goes_back_behind_a_change_of_its_config(run: RunFolder) -> None:
    assert fedshare("resume", str(run.path), "--rounds", "6") == 0
    links = run.links()
    run.rewind(2)
    assert kinds(run) == ["config", 1, 2, "config"]
    assert run.seal_flaw() is None
    for stray in run.checkpoints.glob("*"):
        stray.unlink()
    assert fedshare("resume", str(run.path)) == 0
    assert kinds(run) == ["config", "config", 1, 2, 3, 4, 5, 6]
    assert run.links() == links
    assert verify(run)[0]


def test_a_seal_is_over_what_it_covers_and_the_one_before() -> None:
    seal = Seal.over({"round": 1, "row": "a"}, "")
    assert seal != Seal.over({"round": 1, "row": "b"}, "") != Seal.over({"round": 1, "row": "b"}, "c")


# Kills


class Killed(BaseException):
    pass


def test_a_kill_between_any_two_writes_leaves_a_folder_that_goes_on(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row, a step back and another config, cut off before and after each fsync, and a line in its middle."""
    last = whole.links()[-1]
    link = Link.extend(last.digest, 5, last.server, {})
    row = whole.rows()[-1] | {"round": 5, "digest": link.digest}
    more = whole.config.read_text().replace("rounds: 4", "rounds: 9")
    steps: dict[str, Callable[[RunFolder], None]] = {
        "append": lambda run: run.append(row, link),
        "rewind": lambda run: run.rewind(1),
        "amend": lambda run: run.amend(more),
    }
    fsync, count = os.fsync, dict.fromkeys(steps, 0)
    for name, step in steps.items():
        for after in (False, True):
            for moment in range(100):
                run = RunFolder.open(shutil.copytree(whole.path, tmp_path / f"{name}-{after}-{moment}"))
                shutil.rmtree(run.checkpoints)
                left = moment

                def cut(file: int, after: bool = after) -> None:
                    nonlocal left
                    if left == 0 and not after:
                        raise Killed
                    fsync(file)
                    if left == 0:
                        raise Killed
                    left -= 1

                with monkeypatch.context() as patch:
                    patch.setattr(os, "fsync", cut)
                    try:
                        step(run)
                    except Killed:
                        count[name] += 1
                    else:
                        break
                assert runs.records_flaw(run) is None, f"{name}, fsync {moment}"
                assert name != "append" or verify(run)[0]
                if after and name == "append":
                    torn(run)
                run.rewind(1)
                assert len(run.links()) == len(run.rows()) == 1
                assert run.seal_flaw() is None
                run.append(whole.rows()[1], whole.links()[1])
                assert verify(run)[1].startswith("whole: 2 rounds")
    assert count == {"append": 6, "rewind": 12, "amend": 10}


def torn(run: RunFolder) -> None:
    """Cut the last line of whichever file was written last."""
    counts = [(len(lines(path)), path) for path in (run.seals.path, run.metrics, run.links_file)]
    last = [path for count, path in counts if count == (6 if path == run.seals.path else 5)][-1]
    last.write_bytes(last.read_bytes()[:-9])
    assert runs.records_flaw(run) is None


KILLS = {  # the function after which the process dies, and where
    "a row is sealed": ("seals.SealFile.add_row", "arguments[1] == 3"),
    "a new config is sealed": ("seals.SealFile.add_config", "True"),
}


@pytest.mark.process
@pytest.mark.parametrize("moment", KILLS)
def test_kill_9_at_a_seal_then_resume_gives_the_same_bits(
    moment: str, whole: RunFolder, tmp_path: Path, capfd: Capture
) -> None:
    name, when = KILLS[moment]
    program = (
        "import os, signal, sys\n"
        f"from fedshare.runs import {name.partition('.')[0]}\n"
        "from fedshare.experiments.cli import main\n"
        f"inner = {name}\n"
        "def fatal(*arguments):\n"
        "    result = inner(*arguments)\n"
        f"    return os.kill(os.getpid(), signal.SIGKILL) if {when} else result\n"
        f"{name} = fatal\n"
        "main(sys.argv[1:])"
    )
    folder, longer = tmp_path / "killed", moment == "a new config is sealed"
    command = ["run", f"folder={folder}", *SMALL]
    if longer:
        shutil.copytree(whole.path, folder)
        command = ["resume", str(folder), "--rounds", "6"]
    killed = forked.run("-c", program, *command, timeout=world.PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = RunFolder.open(folder)
    same, sentence = verify(run)
    assert same
    lost = "the newest config" if longer else "round 3"
    assert sentence.endswith(f"; {lost} is sealed and missing: a kill cut its writing short, or it was removed")
    assert checkpoint.rounds(run.checkpoints) == ([4, 2] if longer else [2])
    assert fedshare("resume", str(folder), *(["--rounds", "6"] if longer else [])) == 0
    assert run.links()[:4] == whole.links()
    assert verify(run)[1].startswith(f"whole: {6 if longer else 4} rounds")
    assert "sealed and missing" not in verify(run)[1]


def test_a_run_without_its_checkpoints_is_said_to_be_one(run: RunFolder) -> None:
    with_them = verify(run)[1]
    assert "metrics and checkpoints agree" in with_them
    shutil.rmtree(run.checkpoints)
    whole, said = verify(run)
    assert whole
    assert said == with_them.replace("metrics and checkpoints agree", "metrics agree") + "; no checkpoints"


def test_several_rounds_that_are_sealed_and_missing_are_no_whole_run(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints)
    run.model.unlink()
    for path in (run.metrics, run.links_file):
        put(path, *lines(path)[:2])
    assert verify(run)[1].startswith(f"{run.path}: round 3 to round 4 are sealed and missing: removed, or ")
    assert fedshare("resume", str(run.path)) == 0, "a resume that was killed as it went back leaves the same"
    assert verify(run)[1].startswith("whole: 4 rounds")


# Runs without a seal


def test_an_older_run_has_no_seal_and_is_read_as_ever(run: RunFolder, tmp_path: Path, capfd: Capture) -> None:
    shutil.copytree(OLDER, tmp_path / "older")
    run.seals.path.unlink()
    for path in (tmp_path / "older", run.path):
        capfd.readouterr()
        assert fedshare("verify", str(path)) == 0
        said = capfd.readouterr().out
        assert said.startswith("whole: 4 rounds")
        assert said.endswith("it has no seal: made before there were seals, or it was removed\n")
    other_rate(run)
    assert fedshare("resume", str(run.path), "--rounds", "5") == 0
    assert not run.seals.exists()
    assert len(run.rows()) == 5


# The owner's signature


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owner") / "keys"
    assert fedshare("keys", str(folder), "--owner") == 0
    return folder / "owner"


def says(capfd: Capture, status: int, *arguments: str | Path) -> str:
    """The one line of a command that ends with `status`."""
    capfd.readouterr()
    assert fedshare(*map(str, arguments)) == status
    out, err = capfd.readouterr()
    (line,) = (out + err).splitlines()
    return line


def sealed_anew(run: RunFolder) -> None:
    """What an editor can do who knows how seals are made: every record agrees with every other again."""
    held = [(line.removesuffix("\n"), json.loads(line)["round"]) for line in lines(run.metrics)]
    run.seals.begin(run.config.read_bytes(), run.versions.read_bytes())
    for line, round in held:
        run.seals.add_row(round, line)


def test_a_signature_is_checked_by_the_owners_key_alone(
    run: RunFolder, keys: Path, tmp_path: Path, capfd: Capture
) -> None:
    other = tmp_path / "other"
    assert fedshare("keys", str(other), "--owner") == 0
    check = ("verify", run.path, "--key", keys / "owner.pub")
    assert says(capfd, 1, *check) == f"{run.path}: is not signed"
    signed = says(capfd, 0, "sign", run.path, "--key", keys / "owner.key")
    assert signed.startswith(f"{run.path}: signed with the key ")
    assert signed.endswith(", up to round 4")
    assert says(capfd, 0, *check).endswith(f"; signed with the key of {keys}/owner.pub")
    assert says(capfd, 0, "verify", run.path).endswith(f"; {run.path}: signed, but not checked (--key owner.pub)")
    theirs = other / "owner" / "owner.pub"
    assert f": is signed with the key {signed.split()[5].rstrip(',')}, and {theirs} is " in says(
        capfd, 1, "verify", run.path, "--key", theirs
    )


def test_what_is_changed_after_it_was_signed_is_found(run: RunFolder, keys: Path, capfd: Capture) -> None:
    check = ("verify", run.path, "--key", keys / "owner.pub")
    says(capfd, 0, "sign", run.path, "--key", keys / "owner.key")
    original = contents(run.path)
    raise_accuracy(run)
    sealed_anew(run)
    assert says(capfd, 0, "verify", run.path).startswith("whole: 4 rounds"), "a seal alone is no proof against him"
    assert says(capfd, 1, *check) == f"{run.path}: was changed after it was signed: its seal is another"

    last = run.seals.read()[-1].digest
    held = json.loads(run.signature.read_text())
    run.signature.write_text(json.dumps(held | {"seal": last}))
    assert says(capfd, 1, *check) == f"{run.path}: has a signature that is not of its seal: it was changed"
    run.signature.write_text(json.dumps(held | {"seal": "short"}))
    assert says(capfd, 2, *check) == f"fedshare: {run.signature} is damaged: its seal is none"
    run.seals.path.unlink()
    run.signature.write_bytes(original["signature.json"])
    assert says(capfd, 1, *check) == f"{run.path}: is signed, but its seal is gone"


def test_what_was_signed_must_be_there(run: RunFolder, keys: Path, capfd: Capture) -> None:
    check = ("verify", run.path, "--key", keys / "owner.pub")
    says(capfd, 0, "sign", run.path, "--key", keys / "owner.key")
    shutil.rmtree(run.checkpoints)
    run.model.unlink()
    for path in (run.metrics, run.links_file):
        put(path, *lines(path)[:-1])
    assert "; round 4 is sealed and missing: a kill cut its writing short, or " in says(capfd, 0, "verify", run.path)
    assert says(capfd, 1, *check) == f"{run.path}: lacks round 4, which is signed"
    run.rewind(3)
    assert says(capfd, 1, *check) == f"{run.path}: was changed after it was signed: its seal is another"


@pytest.mark.parametrize("place", ["seal", "signature"])
def test_any_flipped_digit_of_a_signature_is_found(place: str, run: RunFolder, keys: Path, capfd: Capture) -> None:
    check = ("verify", run.path, "--key", keys / "owner.pub")
    says(capfd, 0, "sign", run.path, "--key", keys / "owner.key")
    held = json.loads(run.signature.read_text())
    for digit in range(0, len(held[place]), 9):
        changed = f"{int(held[place][digit], 16) ^ 1:x}"
        run.signature.write_text(json.dumps(held | {place: held[place][:digit] + changed + held[place][digit + 1 :]}))
        assert "not of its seal: it was changed" in says(capfd, 1, *check)


def test_a_run_that_went_on_is_signed_up_to_a_round(run: RunFolder, keys: Path, capfd: Capture) -> None:
    check = ("verify", run.path, "--key", keys / "owner.pub")
    says(capfd, 0, "sign", run.path, "--key", keys / "owner.key")
    assert fedshare("resume", str(run.path)) == 0
    assert says(capfd, 0, *check).startswith("whole: 4 rounds"), "nothing was done, so nothing has changed"
    assert fedshare("resume", str(run.path), "--rounds", "5") == 0
    assert says(capfd, 1, *check) == f"{run.path}: went on after it was signed, which was after round 4"
    says(capfd, 0, "sign", run.path, "--key", keys / "owner.key")
    assert says(capfd, 0, *check).startswith("whole: 5 rounds")


def test_only_a_whole_and_sealed_run_is_signed(run: RunFolder, keys: Path, capfd: Capture) -> None:
    before = contents(run.path)
    sign = ("sign", run.path, "--key", keys / "owner.key")
    raise_accuracy(run)
    assert says(capfd, 2, *sign).endswith(
        "row of round 3 was changed since it was sealed; only what is whole is signed"
    )
    run.metrics.write_bytes(before["metrics.jsonl"])
    run.seals.add_row(5, "{}")
    assert says(capfd, 2, *sign).endswith(f": round 5 is sealed and missing: `fedshare resume {run.path}` first")
    run.seals.path.unlink()
    assert says(capfd, 2, *sign).endswith(": has no seal that could be signed: it was made before there were seals")
    with run.lock():
        assert says(capfd, 2, *sign).endswith(": another process is running this run")
    assert not run.signature.exists()


def test_an_owners_key_is_his_alone_and_may_have_a_passphrase(
    run: RunFolder, tmp_path: Path, keys: Path, capfd: Capture
) -> None:
    assert (keys / "owner.key").stat().st_mode & 0o777 == 0o600
    assert "has the key" in says(capfd, 0, "keys", keys.parent, "--owner")
    (secret := tmp_path / "secret").write_text("correct horse\n")
    (wrong := tmp_path / "wrong").write_text("battery\n")
    folder = tmp_path / "locked"
    says(capfd, 0, "keys", folder, "--owner", "--passphrase", secret)
    key = folder / "owner" / "owner.key"
    assert b"ENCRYPTED" in key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    for more, line in (
        ((), f"fedshare: {key}: is encrypted: give --passphrase"),
        (("--passphrase", wrong), f"fedshare: {key}: the passphrase is another, or it is no private key; "),
        (("--passphrase", tmp_path / "none"), f"fedshare: --passphrase {tmp_path / 'none'}: cannot be read: "),
    ):
        assert says(capfd, 2, "sign", run.path, "--key", key, *more).startswith(line)
    says(capfd, 0, "sign", run.path, "--key", key, "--passphrase", secret)
    assert says(capfd, 0, "verify", run.path, "--key", folder / "owner" / "owner.pub").startswith("whole")


def test_what_is_no_owners_key_is_one_line(run: RunFolder, tmp_path: Path, keys: Path, capfd: Capture) -> None:
    public, private = keys / "owner.pub", keys / "owner.key"
    assert "is no private key" in says(capfd, 2, "sign", run.path, "--key", public)
    says(capfd, 0, "sign", run.path, "--key", private)
    assert says(capfd, 2, "verify", run.path, "--key", private) == (
        f"fedshare: {private}: is no public key; beside an owner.key lies its owner.pub"
    )
    assert "cannot be read: No such file" in says(capfd, 2, "verify", run.path, "--key", tmp_path / "none")
    required = "--server and --clients, or --peers: required (--owner makes an owner's key pair alone)"
    assert says(capfd, 2, "keys", tmp_path / "new") == f"fedshare: {required}"
    assert "makes no certificates" in says(capfd, 2, "keys", tmp_path / "new", "--owner", "--clients", "2")
    assert not (tmp_path / "new").exists()
    private.rename(tmp_path / "moved")
    assert "missing, though" in says(capfd, 2, "keys", keys.parent, "--owner")
    (tmp_path / "moved").rename(private)
