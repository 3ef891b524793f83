"""The one-byte ledger on several kinds of processors: torch is told which vector instructions there are to be."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_ledger_commands import ONEBYTE
from test_runs import copy, fedshare

import forked
import world
from fedshare.experiments.config import build
from fedshare.runs import RunFolder, verify
from fedshare.state import digests

LEVELS = ["default", "avx2", "avx512"]  # each has what those before it have
HERE = torch.backends.cpu.get_cpu_capability().lower()
KINDS = LEVELS[: LEVELS.index(HERE) + 1] if HERE in LEVELS else []  # of more there would be illegal instructions
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(len(KINDS) < 2, reason=f"torch has one kind of kernels on this processor: {HERE}"),
]

WHOLE = ["rounds=6", "partition.clients=3", "clients_per_round=null"]
RUNS = {
    "digits": [],
    "a frozen backbone": ["peft=head", "strategy.scaling=mean", "strategy.coding=float"],
    "local parts": ["peft.local=[head.*]", "strategy.pool=5", "strategy.coding=sign"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    base = tmp_path_factory.mktemp("processors")

    @cache
    def make(kind: str) -> RunFolder:
        folder = base / kind.replace(" ", "-")
        assert fedshare("run", f"folder={folder}", *ONEBYTE, *WHOLE, *RUNS[kind]) == 0
        return RunFolder.open(folder)

    return make


def on(processor: str, folder: Path, *commands: str) -> list[str]:
    """What each of our commands says on a kind of processor, one process for all, in `folder`."""
    program = "import sys\nfrom fedshare.experiments.cli import main\nfor line in sys.argv[1:]:\n"
    program += "    try: main(line.split())\n    except SystemExit as end: assert not end.code, line\n"
    program += "    print(end='\\0')\n"
    other = {"ATEN_CPU_CAPABILITY": processor} if processor != HERE else {}
    done = forked.run("-c", program, *commands, cwd=folder, env=os.environ | other, timeout=world.PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\0")[:-1]


def sums(*said: str) -> list[str]:
    return [line.split()[-1] for text in said for line in text.splitlines() if "sha256" in line]


COMMANDS = [
    *(f"replay {{run}} --round {round}" for round in (0, 3, 6)),
    "undo {run} --peer 1 --from-round 2 --into {into}-undone.safetensors",
    "replay {run} --into {into}-replayed.safetensors",
    "export {run} {into}-exported.safetensors",
    "verify {run}",
]


@pytest.fixture(scope="module")
def found(
    run: Callable[[str], RunFolder], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[list[str], list[dict[str, str]]]]:
    """By processor and kind of run, what all commands said, and the digests of the files that they wrote."""
    base, results = tmp_path_factory.mktemp("found"), {}
    for processor in KINDS:
        into = {kind: base / f"{processor}-{number}" for number, kind in enumerate(RUNS)}
        commands = [text.format(run=run(kind).path, into=into[kind]) for kind in RUNS for text in COMMANDS]
        said = on(processor, base, *commands)
        for kind in RUNS:
            mine, said = said[: len(COMMANDS)], said[len(COMMANDS) :]
            parts = ("replayed", "undone", "exported")
            results[processor, kind] = mine, [digests(load_file(f"{into[kind]}-{part}.safetensors")) for part in parts]
    return results


@pytest.mark.parametrize("kind", RUNS)
def test_replay_undo_and_export_give_the_same_bits_on_every_processor(
    kind: str, found: dict[tuple[str, str], tuple[list[str], list[dict[str, str]]]]
) -> None:
    said, files = found[HERE, kind]
    assert "of round 6, as recorded" in said[2]
    assert len(set(sums(*said[:3]))) == 3
    assert sums(said[2]) == sums(said[4]) == sums(said[3])[:1]
    assert sums(said[3])[1] not in sums(*said[:3])
    assert files[0] == files[2]
    assert files[1] != files[0]
    for processor in KINDS:
        theirs, others = found[processor, kind]
        assert sums(*theirs) == sums(*said), processor
        assert others == files, processor
        assert "of round 6, as recorded" in theirs[2]
        assert theirs[6] == said[6]
        assert said[6].startswith("whole: 6 rounds")


def test_torch_does_draw_other_models_there(run: Callable[[str], RunFolder]) -> None:
    """Or the test above would show nothing: as fedshare 0.1 did it, the model is another where kernels have no FMA."""
    folder = run("digits")
    config = folder.config.read_text()
    program = "import sys; from fedshare.experiments.config.build import population as make\n"
    program += "print(make(sys.argv[1]).scratch.fingerprint)"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    there = forked.run("-c", program, config, env=environment, timeout=world.PATIENCE)
    assert there.returncode == 0, there.stderr
    drawn = {there.stdout.strip(), build.population(config).scratch.fingerprint}
    assert len(drawn) == 2
    assert build.population(config, folder.initial).scratch.fingerprint in drawn


def test_a_run_goes_on_on_another_processor_and_is_one_ledger(run: Callable[[str], RunFolder], tmp_path: Path) -> None:
    """What is measured there may be other numbers, and so other bytes: they are in the ledger, and all have them."""
    kinds = ["digits", "a frozen backbone"]
    folders = [copy(run(kind), tmp_path / str(number)) for number, kind in enumerate(kinds)]
    replays = [f"replay {folder.path} --round {round}" for folder in folders for round in (6, 8)]
    said = {
        "default": on("default", tmp_path, *(f"resume {folder.path} --rounds 8" for folder in folders), *replays)[2:]
    }
    said |= {processor: on(processor, tmp_path, *replays) for processor in KINDS[1:]}
    for lines in said.values():
        assert sums(*lines) == sums(*said["default"])
        assert all("as recorded" in text for text in lines)
    for folder, kind in zip(folders, kinds, strict=True):
        assert verify(folder)[0]
        assert folder.links()[:6] == run(kind).links()
        assert len(folder.links()) == 8


# A deployment of several kinds


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server for which three clients wait, on as many kinds of processors."""
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from deployed import Command, free_port

    folder, address = tmp_path_factory.mktemp("hosts"), f"127.0.0.1:{free_port()}"
    kinds = ["default", KINDS[len(KINDS) // 2], HERE]
    clients = [
        Command(folder, *client(address, id), "--stay", **({"ATEN_CPU_CAPABILITY": kind} if kind != HERE else {}))
        for id, kind in enumerate(kinds)
    ]
    with clients[0], clients[1], clients[2]:
        yield address


def client(address: str, id: int) -> tuple[str, ...]:
    return ("client", address, "--id", str(id), "--gpu", "none", "--patience", "3600")


# What clients measure is not the same in its last bits; with the sign alone of large steps, what they say is.
SIGNS = [*ONEBYTE, *WHOLE, "strategy.coding=sign", "strategy.epsilon=0.1"]


@pytest.mark.parametrize("overrides", [[], ["peft=head"], ["attack=sign_flip", "attack.adversaries=[1]"]])
def test_clients_on_several_processors_make_the_run_of_one(
    overrides: list[str], deployed: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    simulated, folder = tmp_path / "simulated", tmp_path / "deployed"
    assert fedshare("run", *SIGNS, *overrides, f"folder={simulated}") == 0
    assert fedshare("server", *SIGNS, *overrides, f"folder={folder}", "--listen", deployed, "--wait", "300") == 0
    assert "client 0 makes another initial model of the same config, and is sent the server's" in capfd.readouterr().out
    same, sentence = verify(RunFolder(folder), RunFolder(simulated))
    assert same, sentence


def test_whatever_they_measure_all_have_the_model_of_the_ledger(deployed: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert fedshare("server", *ONEBYTE, *WHOLE, f"folder={folder}", "--listen", deployed, "--wait", "300") == 0
    assert not any(row["dropped"] for row in RunFolder(folder).rows())
    said = {processor: on(processor, tmp_path, f"verify {folder}", f"replay {folder}") for processor in KINDS}
    assert all("of round 6, as recorded" in text for _, text in said.values())
    assert len({sums(text)[0] for _, text in said.values()}) == 1


def test_a_client_on_another_processor_that_is_killed_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from deployed import Command, eventually, free_port, lines

    address, folder, simulated = f"127.0.0.1:{free_port()}", tmp_path / "run", tmp_path / "simulated"
    overrides = [*SIGNS, "rounds=12", "strategy.probes=40"]
    assert fedshare("run", f"folder={simulated}", *overrides) == 0
    wait = ("--wait", "300", "--grace", "300")
    server = Command(tmp_path, "server", *overrides, f"folder={folder}", "--listen", address, *wait)
    with server, Command(tmp_path, *client(address, 1)), Command(tmp_path, *client(address, 2)):
        with Command(tmp_path, *client(address, 0), ATEN_CPU_CAPABILITY="default") as first:
            eventually(lambda: lines(folder / "metrics.jsonl") >= 1 or server.process.poll() is not None, "round 1")
            first.kill()
        rounds = lines(folder / "metrics.jsonl")
        with Command(tmp_path, *client(address, 0), ATEN_CPU_CAPABILITY="default"):
            assert server.wait() == 0, server.said
    assert rounds < 12, "killed too late to prove anything"
    same, sentence = verify(RunFolder(folder), RunFolder(simulated))
    assert same, f"{sentence}\n{server.said}"
