"""`fedshare replay`, `undo` and `ledger`: a run's models from its ledger alone, and as if somebody had not spoken."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_ledger import NORMAL, SIGNS, meaning, replayed
from test_runs import copy, fedshare

from fedshare.directions.gaussian import Gaussian
from fedshare.directions.perturb import settle
from fedshare.directions.rademacher import Rademacher
from fedshare.experiments.commands import ledgers
from fedshare.experiments.config import build
from fedshare.ledger import Commit, Manifest
from fedshare.ledger.file import LedgerFile
from fedshare.ledger.replay import count, parted
from fedshare.ledger.replay import replay as rebuild
from fedshare.ledger.sums import Sums
from fedshare.machine.threads import threads
from fedshare.runs import RunFolder, verify
from fedshare.tensors import digest

pytestmark = pytest.mark.long

SMALL = [
    "model=mlp",
    "model.hidden=[8]",
    "partition.clients=3",
    "partition.alpha=1",
    "clients_per_round=2",
    "workers=0",
]
ONEBYTE = ["strategy=onebyte", "strategy.lr=0.01", "strategy.probes=10", "checkpoint_every=2", *SMALL]
Capture = pytest.CaptureFixture[str]
Runs = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs by their overrides, each made once."""
    base = tmp_path_factory.mktemp("runs")

    @cache
    def make(*overrides: str) -> RunFolder:
        folder = base / str(len(list(base.iterdir())))
        assert fedshare("run", f"folder={folder}", *ONEBYTE, "rounds=6", *overrides) == 0
        return RunFolder.open(folder)

    return make


def says(capfd: Capture, *arguments: object) -> dict[str, str]:
    """The lines of a command that does what it is to do, by their first words."""
    capfd.readouterr()
    assert fedshare(*map(str, arguments)) == 0
    return by_name(capfd)


def by_name(capfd: Capture) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines() if line)


def refuses(capfd: Capture, *arguments: object) -> str:
    capfd.readouterr()
    assert fedshare(*map(str, arguments)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err.removeprefix("fedshare: ").strip()


def rewritten(to: Path, commits: list[Commit], manifest: Manifest) -> None:
    file, head = LedgerFile(to), manifest.head
    file.create(manifest)
    for commit in commits:
        head = commit.head(head)
        file.append(commit, head)


# Pure functions


def spoken(rounds: int, seed: int = 0, step: int = 90) -> list[Commit]:
    draw = random.Random(seed)
    return [
        Commit(r, step + r, {p: draw.randbytes(draw.choice([0, 3, 11])) for p in draw.sample(range(5), 3)})
        for r in range(1, 2 * rounds, 2)
    ]


@pytest.mark.parametrize("step", [90, 2**30])
@pytest.mark.parametrize(("peers", "since"), [([1], 1), ([1], 6), ([0, 3], 1), ([4, 2], 9), (range(5), 1), ([], 1)])
def test_taking_entries_off_is_a_ledger_that_never_had_them(peers: list[int], since: int, step: int) -> None:
    size, some = 700, spoken(8, step=step)
    means = meaning(size)
    kept, taken = parted(some, peers, since)
    assert [commit.round for commit in kept] == [commit.round for commit in some]
    assert count(means, kept) + count(means, taken) == count(means, some)
    sums = Sums(replayed(some, means, size))
    sums.add(means.directions, ((o, -np.asarray(q)) for commit in taken for o, q in means.entries(commit)))
    width = sums.values.dtype
    assert (width == torch.int64) == (step == 2**30)
    assert torch.equal(sums.values, replayed(kept, means, size).to(width))
    initial = torch.linspace(-1, 1, size)
    expected, found = torch.empty(size), torch.empty(size)
    settle(expected, initial, sums.values, means.manifest.fraction)
    rebuild(means, kept, initial, found)
    assert torch.equal(found, expected)
    rebuild(means, kept, initial, initial)
    assert torch.equal(initial, expected), "which may be written over the initial one"


@pytest.mark.parametrize("kind", [SIGNS, NORMAL])
def test_pieces_give_the_same_bits(kind: Rademacher | Gaussian, monkeypatch: pytest.MonkeyPatch) -> None:
    size, means, initial = 5_003, meaning(5_003, kind), torch.linspace(-1, 1, 5_003)
    whole, found = torch.empty(size), torch.empty(size)
    rebuild(means, spoken(3), initial, whole)
    monkeypatch.setattr("fedshare.ledger.replay.PIECE", 1_001)
    rebuild(means, spoken(3), initial, found)
    assert torch.equal(whole, found)
    assert not torch.equal(whole, initial)


def test_no_number_of_threads_changes_a_bit() -> None:
    size = 2**20 + 2**18 + 5  # more than is one piece
    means, found = meaning(size), set()
    for number in (1, 2, 3):
        with threads(number):
            vector = torch.linspace(-1, 1, size)
            rebuild(means, spoken(1), vector, vector)
            found.add(digest(vector))
    assert len(found) == 1


def resident(what: str) -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def test_beside_the_vector_there_are_only_the_sums_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedshare.ledger.replay.PIECE", 2**21)
    means, some = meaning(2**23), [Commit(1, 90, {0: b"abc"})]
    warm = torch.zeros(2**14)
    rebuild(means, some, warm, warm)  # whatever is loaded then
    vector = torch.ones(2**23)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak until now
    except OSError:
        pytest.skip("needs Linux's /proc")
    before = resident("VmRSS")
    rebuild(means, some, vector, vector)
    assert resident("VmHWM") - before < 0.75 * vector.nbytes


# replay


def test_the_model_of_each_round_is_the_recorded_one(run: Runs, capfd: Capture) -> None:
    folder = run()
    found = set()
    for round in range(7):
        said = says(capfd, "replay", folder.path, "--round", round)
        how = "as recorded" if round else "which everyone starts from"
        assert said["model"] == f"of round {round}, {how}"
        assert said["ledger"].startswith(f"{20 * round} entries in {round} commits")
        assert round == 0 or re.search(r"commits, replayed in [\d.]+ s: [\d,]+ entries a second$", said["ledger"])
        found.add(said["sha256"])
    assert len(found) == 7
    assert says(capfd, "replay", folder.path)["sha256"] == said["sha256"]
    assert said["sha256"] == digest(torch.cat([load_file(folder.model)[n].flatten() for n, _ in layout(folder)]))
    assert verify(folder)[0], "the run is as it was"


def layout(folder: RunFolder) -> list[tuple[str, list[int]]]:
    return folder.ledger.read().manifest.layout


FROZEN = ("peft=head", "strategy.directions=gaussian", "strategy.scaling=mean", "strategy.warmup=2", "rounds=4")
LOCAL = ("peft.local=[head.*]", "strategy.coding=float", "strategy.pool=3", "strategy.horizon=9", "seed=5", "rounds=4")


@pytest.mark.parametrize("overrides", [FROZEN, LOCAL])
def test_whatever_its_entries_mean_a_run_is_replayed(overrides: tuple[str, ...], run: Runs, capfd: Capture) -> None:
    for round in (1, 4):
        said = says(capfd, "replay", run(*overrides).path, "--round", round)
        assert said["model"] == f"of round {round}, as recorded"


def test_the_whole_model_is_written_as_export_writes_it(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = run(*FROZEN)
    mine, exported = tmp_path / "mine.safetensors", tmp_path / "exported.safetensors"
    said = says(capfd, "replay", folder.path, "--into", mine)
    assert said["into"] == f"{mine}: 4 tensors, {8 * 64 + 8 + 8 * 10 + 10} numbers"
    assert fedshare("export", str(folder.path), str(exported)) == 0
    assert mine.read_bytes() == exported.read_bytes(), "what is frozen included"
    assert [name for name, _ in layout(folder)] == ["head.weight", "head.bias"]
    assert "is there already" in refuses(capfd, "replay", folder.path, "--into", mine)
    assert "must end in .safetensors" in refuses(capfd, "undo", folder.path, "--peer", 0, "--into", tmp_path / "x.pt")


def test_a_run_that_was_resumed_has_the_same_models(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    known = says(capfd, "replay", folder.path)["sha256"]
    for path in folder.checkpoints.glob("*6*"):
        path.unlink()
    with folder.ledger.path.open("ab") as tail:
        tail.write(b"\0\0")
    assert fedshare("resume", str(folder.path), "--rounds", "8") == 0
    assert says(capfd, "replay", folder.path, "--round", 6) | {"ledger": ""} == {
        "model": "of round 6, as recorded",
        "sha256": known,
        "ledger": "",
    }
    assert says(capfd, "replay", folder.path)["model"] == "of round 8, as recorded"


def test_rounds_without_a_commit_have_the_model_before(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    last = json.loads(folder.links_file.read_text().splitlines()[-1])
    with folder.links_file.open("a") as links:
        links.write(json.dumps(last | {"round": 7}) + "\n")
    assert says(capfd, "replay", folder.path)["model"] == "of round 7, as recorded"


def test_another_model_than_the_recorded_is_named(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    lines = folder.links_file.read_text().splitlines()
    link = json.loads(lines[3])
    link["server"]["params/head.bias"] = "0" * 64
    lines[3] = json.dumps(link)
    folder.links_file.write_text("\n".join(lines) + "\n")
    into = tmp_path / "no.safetensors"
    capfd.readouterr()
    assert fedshare("replay", str(folder.path), "--round", "4", "--into", str(into)) == 1
    assert by_name(capfd)["model"] == "of round 4, not as recorded: params/head.bias differs"
    assert not into.exists()
    assert says(capfd, "replay", folder.path, "--round", 5)["model"] == "of round 5, as recorded"
    folder.links_file.write_text("\n".join(lines[:3]) + "\n")
    assert fedshare("replay", str(folder.path)) == 1
    assert by_name(capfd)["model"] == "of round 6, of which the run has no record"


def holding_none(folder: RunFolder, *without: str) -> dict[str, str]:
    """Make it a run that does not hold its initial model, and that does not know what else is named."""
    folder.initial.unlink()
    versions: dict[str, str] = json.loads(folder.versions.read_text())
    for name in ("initial", *without):
        del versions[name]
    folder.versions.write_text(json.dumps(versions))
    return versions


@pytest.mark.parametrize("known", [True, False])
def test_a_ledger_that_starts_from_another_model_is_refused(
    known: bool, run: Runs, tmp_path: Path, capfd: Capture
) -> None:
    folder = copy(run(), tmp_path / "copy")
    made = tmp_path / "weights.safetensors"
    assert fedshare("export", str(folder.path), str(made)) == 0
    versions = holding_none(folder, *[] if known else ["model"])
    config = OmegaConf.load(folder.config)
    starts = (
        f"{folder.path}: began with another model: "
        if known
        else f"{folder.ledger.path}: starts from another model than the config makes now: "
    )

    config.weights = str(made)
    OmegaConf.save(config, folder.config)
    assert refuses(capfd, "replay", folder.path) == f"{starts}other weights lie at weights={made} now"

    config.weights, config.seed = None, 1
    OmegaConf.save(config, folder.config)
    line = refuses(capfd, "undo", folder.path, "--peer", 0)
    assert line == f"{starts}this is another kind of processor, or the config or the model's code has changed"
    folder.versions.write_text(json.dumps(versions | {"torch": "1.0"}))
    assert refuses(capfd, "replay", folder.path) == f"{starts}torch was 1.0 then, and is {versions['torch']}"

    config.seed, config.model.hidden = 0, [9]
    OmegaConf.save(config, folder.config)
    assert refuses(capfd, "replay", folder.path).startswith(starts)


def test_a_run_that_holds_its_model_needs_neither_weights_nor_a_seed_for_it(
    run: Runs, tmp_path: Path, capfd: Capture
) -> None:
    folder, made = copy(run(), tmp_path / "copy"), tmp_path / "weights.safetensors"
    known = says(capfd, "replay", folder.path)["sha256"]
    assert fedshare("export", str(folder.path), str(made)) == 0
    config = OmegaConf.load(folder.config)
    for key, value in (("seed", 1), ("weights", str(made))):
        config[key] = value
        OmegaConf.save(config, folder.config)
        said = says(capfd, "replay", folder.path)
        assert (said["model"], said["sha256"]) == ("of round 6, as recorded", known)
    config.model.hidden = [9]
    config.weights = None
    OmegaConf.save(config, folder.config)
    line = refuses(capfd, "replay", folder.path)
    why = "head.weight is torch.float32 [10, 8], not torch.float32 [10, 9]"
    assert line == f"{folder.initial}: does not fit the model that the config makes now: {why}"


def test_a_run_made_elsewhere_on_a_device_that_is_not_here_is_replayed(
    run: Runs, tmp_path: Path, capfd: Capture
) -> None:
    folder = copy(run(), tmp_path / "copy")
    config = OmegaConf.load(folder.config)
    config.device = "cuda:77"
    OmegaConf.save(config, folder.config)
    assert fedshare("replay", str(folder.path)) == 0
    out, err = capfd.readouterr()
    assert "of round 6, as recorded" in out
    assert re.match(r"warning: device=cuda:77: .*; on the CPU instead\n$", err)


# undo


@pytest.mark.parametrize(("peers", "since"), [([1], 1), ([1], 4), ([0, 2], 1), ([0, 1, 2], 1)])
def test_undone_is_the_model_of_a_ledger_that_never_had_the_peer(
    peers: list[int], since: int, run: Runs, tmp_path: Path, capfd: Capture
) -> None:
    original = run()
    contents = original.ledger.read()
    into = tmp_path / "without.safetensors"
    said = says(
        capfd, "undo", original.path, "--from-round", since, "--into", into, *[a for p in peers for a in ("--peer", p)]
    )
    theirs = [c for c in contents.commits if c.round >= since for p in c.said if p in peers]
    rounds = len({commit.round for commit in theirs})
    assert said["left"].endswith(f" on: {10 * len(theirs)} of 120 entries, in {rounds} of 6 commits")

    folder = copy(original, tmp_path / "copy")
    commits = []
    for commit in contents.commits:
        for peer in peers if commit.round >= since else ():
            commit = commit.without(peer)
        commits.append(commit)
    rewritten(folder.ledger.path, commits, contents.manifest)
    capfd.readouterr()
    assert fedshare("replay", str(folder.path), "--round", "6") == 1
    replayed = by_name(capfd)
    assert replayed["model"].startswith("of round 6, not as recorded: params/")
    assert said["without"].split()[-1] == replayed["sha256"]
    model = load_file(into)
    assert digest(torch.cat([model[n].flatten() for n, _ in layout(folder)])) == replayed["sha256"]

    assert said["with"].split()[-1] == says(capfd, "replay", original.path)["sha256"]
    assert verify(original)[0], "the run is as it was"


def test_both_models_are_tested_on_the_whole_test_set(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder, into = run(), tmp_path / "without.safetensors"
    said = says(capfd, "undo", folder.path, "--peer", 2, "--peer", 2, "--into", into)
    row = folder.rows()[-1]
    assert said["with"].startswith(f"accuracy {row['accuracy']:.4f}, loss {row['loss']:.4f}, sha256 ")
    population = build.population_of(ledgers.stored(folder))
    module = population.scratch.module
    module.load_state_dict(load_file(into))
    examples = [share.test.batch(slice(None)) for share in population.shares]  # type: ignore[attr-defined]
    inputs, targets = (torch.cat(parts) for parts in zip(*examples, strict=True))
    with torch.no_grad():
        logits = module(inputs)
    accuracy = (logits.argmax(1) == targets).float().mean()
    loss = torch.nn.functional.cross_entropy(logits, targets)
    assert said["without"].startswith(f"accuracy {accuracy:.4f}, loss {loss:.4f}, sha256 ")
    assert said["left"].startswith("out  peer 2 from round 1 on: ")


def test_a_part_of_the_model_that_is_a_clients_own_stays_its_own(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder, into = run(*LOCAL), tmp_path / "without.safetensors"
    said = says(capfd, "undo", folder.path, "--peer", 0, "--into", into)
    row = folder.rows()[-1]
    assert said["with"].startswith(f"accuracy {row['accuracy']:.4f}, loss {row['loss']:.4f}, sha256 ")
    scratch = build.population_of(ledgers.stored(folder)).scratch
    found = load_file(into)
    assert torch.equal(found["head.weight"], scratch.whole["head.weight"])
    assert not torch.equal(found["layers.0.weight"], scratch.whole["layers.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("undo", "--peer", "3"), "--peer 3: has not spoken in {ledger}; allowed: 0 to 2"),
        (("undo", "--peer", "1", "--peer", "-1"), "--peer -1: has not spoken in {ledger}; allowed: 0 to 2"),
        (("undo", "--peer", "1", "--from-round", "0"), "--from-round 0: {ledger} has 1 to 6"),
        (("undo", "--peer", "1", "--from-round", "7"), "--from-round 7: {ledger} has 1 to 6"),
        (("undo",), "the following arguments are required: --peer; see fedshare undo --help"),
        (("replay", "--round", "7"), "--round 7: {ledger} has 0, the initial model, to 6"),
        (("replay", "--round", "-1"), "--round -1: {ledger} has 0, the initial model, to 6"),
        (("replay", "--round", "x"), "argument --round: invalid int value: 'x'; see fedshare replay --help"),
    ],
)
def test_what_is_not_there_is_one_line_that_says_what_is(
    arguments: tuple[str, ...], line: str, run: Runs, capfd: Capture
) -> None:
    folder = run()
    command, *rest = arguments
    assert refuses(capfd, command, folder.path, *rest) == line.format(ledger=folder.ledger.path)


# ledger


def test_a_summary_says_who_has_said_how_much_and_what_it_weighs(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    manifest = replace(folder.ledger.read().manifest, fraction=13 + 10)
    commits = [
        Commit(2, 1024, {0: bytes([71, 71 | 128, 128, 0]), 300: bytes([128, 128])}),  # 1, -1, nothing, 0; nothing twice
        Commit(9, 512, {0: bytes([79, 79, 79])}),  # 2
    ]
    rewritten(folder.ledger.path, commits, manifest)
    said = says(capfd, "ledger", folder.path)
    whole, start = folder.ledger.path.stat().st_size, folder.ledger.read().start
    framing = whole - start - 9
    assert said["file"] == f"{folder.ledger.path}, {whole} B: manifest {start} B, codes 9 B, framing {framing} B"
    assert said["rounds"] == f"2 to 9 in 2 commits, head {folder.ledger.read().head}"
    assert said["entries"] == f"9, each 1 B of codes and {framing / 9:.2f} B of framing"
    assert said["step"] == "1 (1024 * 2**-10) in round 2; 0.5 (512 * 2**-10) in round 9"
    size = 8 * 64 + 8 + 80 + 10
    assert said["gradients"] == f"{4 * size * 9 / whole:,.0f} times the file: 22.0 kB, one of floats for each entry"
    assert said["models"].startswith(f"{4 * size * 3 / whole:,.0f} times the file: 7.3 kB, one of floats for each peer")
    assert said["0"].split() == ["2", "7", "1", f"{(1 + 1 + 0 + 2 + 2 + 2) / 6:.4f}"]
    assert said["300"].split() == ["1", "2", "2", "-"]


def test_a_summary_of_a_run_says_its_step_size(run: Runs, capfd: Capture) -> None:
    assert says(capfd, "ledger", run().path)["step"] == "0.01001 (82 * 2**-13) in all rounds"


def test_of_many_peers_some_have_a_line(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    rewritten(folder.ledger.path, [Commit(1, 1, dict.fromkeys(range(70), b"a"))], folder.ledger.read().manifest)
    said = says(capfd, "ledger", folder.path)
    assert said["and"] == "10 peers more"
    assert "59" in said
    assert "60" not in said


def test_a_ledger_that_is_cut_short_or_has_no_commit_yet_is_read(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    data, contents = folder.ledger.path.read_bytes(), folder.ledger.read()
    folder.ledger.path.write_bytes(data[:-3])
    cut = len(data) - 3 - contents.places[-2].end
    warning = (
        f"warning: {folder.ledger.path}: its last {cut} bytes are of a commit cut short; it is whole up to round 5\n"
    )
    for command, line in (
        ("ledger", f", cut short {cut} B\n"),
        ("replay", "of round 5, as recorded; no later one is in"),
    ):
        capfd.readouterr()
        assert fedshare(command, str(folder.path)) == 0
        out, err = capfd.readouterr()
        assert (line in out, err) == (True, warning)

    folder.ledger.path.write_bytes(data[: contents.start])
    assert says(capfd, "ledger", folder.path)["rounds"] == "none yet"
    none = "of round 0, which everyone starts from; no later one is in the ledger, and the run is at round 6"
    assert says(capfd, "replay", folder.path)["model"] == none
    assert refuses(capfd, "undo", folder.path, "--peer", 0) == f"{folder.ledger.path}: has no commit yet"


@pytest.mark.parametrize("command", [("ledger",), ("replay",), ("undo", "--peer", "0")])
def test_what_cannot_be_read_is_one_line(command: tuple[str, ...], run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    data, contents = folder.ledger.path.read_bytes(), folder.ledger.read()
    damaged = bytearray(data)
    damaged[-20] ^= 4
    name, *rest = command
    folder.ledger.path.write_bytes(damaged)
    assert f"{folder.ledger.path}: damaged after round 5, at byte " in refuses(capfd, name, folder.path, *rest)

    rewritten(folder.ledger.path, contents.commits, replace(contents.manifest, codes="nibbles"))
    assert f"{folder.ledger.path}: its codes are nibbles; this version" in refuses(capfd, name, folder.path, *rest)

    three = replace(contents.manifest, codes="int32/2**-20")  # of which each has four bytes
    rewritten(folder.ledger.path, [Commit(1, 1, {0: b"abc"})], three)
    assert refuses(capfd, name, folder.path, *rest).startswith(f"{folder.ledger.path}: ")

    folder.ledger.path.unlink()
    line = f"{folder.path}: has no ledger: its strategy sends models"
    assert refuses(capfd, name, folder.path, *rest) == line
    folder.links_file.unlink()
    assert refuses(capfd, name, folder.path, *rest) == f"{folder.path}: has no ledger: no round is recorded yet"


def test_steps_and_messages_that_no_run_has_are_one_line(run: Runs, tmp_path: Path, capfd: Capture) -> None:
    folder = copy(run(), tmp_path / "copy")
    manifest = folder.ledger.read().manifest
    for commit, says_ in (
        (Commit(1, 2**60, {0: b"\x47"}), "its step 1152921504606846976 is beyond 64 bits"),
        (Commit(1, 1, {2**40: b"\x47"}), "is not a number of 32 bits"),
        (Commit(1, 1, {0: bytes(8 * 256 + 1)}), "message 256 of 256 in a round"),
    ):
        rewritten(folder.ledger.path, [commit], manifest)
        line = refuses(capfd, "replay", folder.path)
        assert line.startswith(f"{folder.ledger.path}: ")
        assert says_ in line
