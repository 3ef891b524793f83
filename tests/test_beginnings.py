"""What a run began with: the version that made it and its random streams, and the model that its folder holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from test_ledger_commands import says
from test_runs import SMALL, copy, fedshare, flip

import world
from fedshare import __version__, seeds
from fedshare.experiments import beginnings
from fedshare.experiments.config import build, compose
from fedshare.runs import RunFolder, verify
from fedshare.state import digests
from fedshare.tensors import digest, fingerprint
from fedshare.training.parts import Role

pytestmark = pytest.mark.long

OLDER = world.ROOT / "tests" / "older" / "run-0.1.0"  # made by fedshare 0.1.0: onebyte, its model from portable.py
MODELS = {  # what its own `replay` said, after these rounds
    2: "88e728a7afcf51c2128ab3a40363183a4e7bf5360e1b425e5be7a230b3d663d1",
    4: "0bf533a7552345d853def2fb245ce33e5cdf355ac36dc99ba451a6a20da307ea",
}
UNDONE = "f16669d695584b6a163ad020b71b841fb636699446491a6e3ac0814ba9ff8500"  # and its `undo --peer 1`
Capture = pytest.CaptureFixture[str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refusal(capfd: Capture, folder: Path, *arguments: str) -> str:
    """The one line that a command says which ends with 2 and leaves the folder as it was."""
    before = contents(folder)
    capfd.readouterr()
    assert fedshare(*arguments) == 2
    assert contents(folder) == before
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    return err.removeprefix("fedshare: ").strip()


@pytest.fixture
def older(tmp_path: Path) -> RunFolder:
    shutil.copytree(OLDER, tmp_path / "older")
    return RunFolder.open(tmp_path / "older")


OTHERS = "whose random streams are others: a checkout of that version goes on with it to the same bits; "
GOING_ON = {
    "resume": ("resume", "{}"),
    "resume for longer": ("resume", "{}", "--rounds", "9"),
    "a server": ("server", "--resume", "{}", "--listen", "127.0.0.1:0"),
    "a server with a config": ("server", "strategy=fedavg", "folder={}", "--resume", "--listen", "127.0.0.1:0"),
    "Flower": ("flower-run", str(world.ROOT), "--nodes", "3", "--run-config", 'resume=true folder="{}"'),
}


@pytest.mark.parametrize("how", GOING_ON)
def test_a_run_of_before_is_not_gone_on_with(how: str, older: RunFolder, capfd: Capture) -> None:
    if how not in ("resume", "resume for longer"):
        pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    line = refusal(capfd, older.path, *(part.format(older.path) for part in GOING_ON[how]))
    still = "verify, compare, ledger, replay, undo and export still read it"
    assert line == f"{older.path}: was made with fedshare 0.1.0, {OTHERS}{still}"


def test_a_pretraining_of_before_is_not_gone_on_with(tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "backbone"
    assert fedshare("pretrain", "model=logistic", "epochs=1", "threads=1", f"folder={folder}") == 0
    for versions, made in (({"fedshare": "0.1.0"}, "fedshare 0.1.0"), ({}, "a fedshare before 0.2")):
        (folder / "versions.json").write_text(json.dumps(versions))
        line = refusal(capfd, folder, "pretrain", "--resume", str(folder))
        assert line == f"{folder}: was made with {made}, {OTHERS}what is in it can still be weights="


def test_a_matrix_of_before_gets_no_cells_of_now(tmp_path: Path, capfd: Capture) -> None:
    folder, small = tmp_path / "m", ["partition.clients=3", "rounds=1", "workers=0", "partitions=iid", "reference=null"]
    asked = ["matrix", f"folder={folder}", *small, "attacks=none", "client.epochs=1"]
    assert fedshare(*asked, "defences=fedavg", "seeds=0") == 0
    (cell,) = (folder / "cells").iterdir()
    held = json.loads(cell.read_text())
    assert held.pop("fedshare") == __version__
    cell.write_text(json.dumps(held))  # as 0.1 left them
    line = refusal(capfd, folder, *asked, "defences=fedavg", "seeds=0,1")
    assert line.startswith(f"{folder}: was made with a fedshare before 0.2, {OTHERS}")
    assert fedshare(*asked, "defences=fedavg", "seeds=0") == 0, "where no cell is lacking, nothing is drawn"


@pytest.mark.parametrize("made", ["0.2.0", "0.10.1", "1.0.0", "0.2.0rc1"])
def test_a_run_of_now_is(made: str, older: RunFolder) -> None:
    older.versions.write_text(json.dumps(older.made_with() | {"fedshare": made}))
    beginnings.check_streams(older)
    with beginnings.streams(older):
        assert seeds.generator(0).initial_seed() == seeds.number(0)
        assert not torch.equal(torch.rand(3, generator=seeds.generator(0)), before(0))


def before(*key: seeds.Key) -> torch.Tensor:
    return torch.rand(3, generator=torch.Generator().manual_seed(seeds.number(*key)))


@pytest.mark.parametrize("made", ["0.1.0", "0.1.7", "0.0.3", None, "unknown"])
def test_whatever_is_older_is_read_with_its_own_streams(made: str | None, older: RunFolder) -> None:
    versions = {"torch": "2.6.0"} if made is None else {"fedshare": made}
    older.versions.write_text(json.dumps(versions))
    with beginnings.streams(older):
        assert torch.equal(torch.rand(3, generator=seeds.generator(0)), before(0))
    assert not torch.equal(torch.rand(3, generator=seeds.generator(0)), before(0))


TRUSTED = ("--trust", "portable")  # a folder of before has no mark that shows who wrote it


@pytest.mark.parametrize("round", MODELS)
def test_a_ledger_of_before_is_replayed(round: int, older: RunFolder, capfd: Capture) -> None:
    said = says(capfd, "replay", older.path, "--round", round, *TRUSTED)
    assert (said["model"], said["sha256"]) == (f"of round {round}, as recorded", MODELS[round])


def test_a_run_of_before_is_verified_compared_undone_and_exported(
    older: RunFolder, tmp_path: Path, capfd: Capture
) -> None:
    again, whole = copy(older, tmp_path / "again"), tmp_path / "whole.safetensors"
    assert fedshare("verify", str(older.path)) == 0
    assert fedshare("verify", str(older.path), str(again.path)) == 0
    assert fedshare("compare", str(older.path), str(again.path)) == 0
    said = says(capfd, "undo", older.path, "--peer", 1, *TRUSTED)
    assert said["with"].endswith(f"sha256 {MODELS[4]}")
    assert said["without"].endswith(f"sha256 {UNDONE}")
    assert says(capfd, "ledger", older.path)["entries"].startswith("80, ")
    assert fedshare("export", str(older.path), str(whole), *TRUSTED) == 0
    model = load_file(whole)
    assert digest(torch.cat([model["weight"].flatten(), model["bias"]])) == MODELS[4]


def test_what_of_a_run_of_before_cannot_be_drawn_is_said(older: RunFolder, capfd: Capture) -> None:
    older.versions.write_text(json.dumps(older.made_with() | {"torch": beginnings.versions()["torch"]}))
    config = OmegaConf.load(older.config)
    config.seed = 7  # draws another model, as another kind of processor does
    OmegaConf.save(config, older.config)
    for command in (("replay",), ("undo", "--peer", "1")):
        line = refusal(capfd, older.path, command[0], str(older.path), *command[1:], *TRUSTED)
        assert line.startswith(f"{older.path}: began with another model: this is another kind of processor, or ")


# The model that a folder holds


KINDS = {
    "all of it": [],
    "a frozen part": ["peft=head"],
    "a local part": ["peft.local=[head.*]"],
    "statistics": ["model=cnn", "peft=bias"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    def make(*overrides: str) -> RunFolder:
        folder = tmp_path_factory.mktemp("held") / "run"
        small = [part for part in SMALL if "hidden" not in part]
        assert fedshare("run", f"folder={folder}", "workers=0", *small, "rounds=2", "model=mlp", *overrides) == 0
        return RunFolder.open(folder)

    return make


Runs = Callable[..., RunFolder]


@pytest.mark.parametrize("kind", ["all of it", "a frozen part", "a local part"])
def test_a_run_without_weights_holds_all_of_its_model(kind: str, run: Runs) -> None:
    folder = run("model.hidden=[8]", *KINDS[kind])
    held, made_with = load_file(folder.initial), folder.made_with()
    whole = build.population(folder.config.read_text()).scratch.whole
    assert digests(held) == digests(whole)
    assert made_with["initial"] == made_with["model"] == fingerprint(held)
    assert fedshare("verify", str(folder.path)) == 0


def weights(path: Path, *overrides: str) -> Path:
    """A backbone whose head is for other classes."""
    config = compose.resolved(["model=mlp", "model.hidden=[8,8]", "seed=9", *overrides])
    model = world.backbone(config)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["head.weight"], tensors["head.bias"] = torch.rand(3, 8), torch.rand(3)
    save_file(tensors, path)
    return path


HELD = {  # what is trained, and what of the rest no file gives
    "head": (["peft=head"], {"head.weight", "head.bias"}),
    "bias": (["peft=bias"], {"head.weight", "head.bias", "layers.0.bias", "layers.1.bias"}),
    "full": (
        ["peft=full"],
        {f"{layer}.{kind}" for layer in ("layers.0", "layers.1", "head") for kind in ("weight", "bias")},
    ),
    "frozen head": (
        ["peft.frozen=[head.*,layers.0.*]"],
        {"layers.1.weight", "layers.1.bias", "head.weight", "head.bias"},
    ),
}


@pytest.mark.parametrize("kind", HELD)
def test_of_a_model_from_weights_a_run_holds_what_no_file_gives(kind: str, run: Runs, tmp_path: Path) -> None:
    overrides, names = HELD[kind]
    folder = run("model.hidden=[8,8]", f"weights={weights(tmp_path / 'w.safetensors')}", *overrides)
    held, made_with = load_file(folder.initial), folder.made_with()
    assert held.keys() == names
    assert made_with["initial"] == fingerprint(held)
    assert (made_with["initial"] == made_with["model"]) == (kind == "full")
    population = build.population(folder.config.read_text(), folder.initial)
    assert population.scratch.fingerprint == made_with["model"]
    roles = population.scratch.parts.roles
    assert {name for name, role in roles.items() if role is not Role.FROZEN} <= names


@pytest.mark.parametrize("kind", ["a changed bit", "a missing file", "half a file", "another model", "a model of more"])
def test_a_held_model_that_is_not_the_recorded_one_is_named(
    kind: str, run: Runs, tmp_path: Path, capfd: Capture
) -> None:
    folder = run("model.hidden=[8]")
    held, where = load_file(folder.initial), "initial.safetensors"
    if kind == "a changed bit":
        flip(folder.initial, folder.initial.stat().st_size - 7)
        wrong = f"{where} is not the model that the run began with"
    elif kind == "a missing file":
        folder.initial.unlink()
        wrong = f"{where} is missing"
    elif kind == "half a file":
        folder.initial.write_bytes(folder.initial.read_bytes()[:-50])
        wrong = f"{where} is damaged: "
    else:
        changed = held | {"more": torch.ones(2)} if "more" in kind else held | {"head.bias": held["head.bias"] + 1}
        save_file(changed, folder.initial)
        wrong = f"{where} is not the model that the run began with"
    assert verify(folder)[1].startswith(f"{folder.path}: {wrong}")
    for command in (("resume", "--rounds", "3"), ("export", str(tmp_path / "x.safetensors"))):
        line = refusal(capfd, folder.path, command[0], str(folder.path), *command[1:])
        assert line.startswith(
            (f"{folder.path}: {wrong}", f"{folder.path}/{wrong}", f"{folder.path}/{where}: does not fit")
        )
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
@pytest.mark.parametrize("kind", ["a frozen part", "a local part"])
def test_a_run_goes_on_from_the_model_that_it_holds(kind: str, workers: int, run: Runs, tmp_path: Path) -> None:
    """As if the processor were another: what the folder holds is not what the config makes."""
    folder = run("model.hidden=[8]", *KINDS[kind], "seed=3")
    reference = copy(folder, tmp_path / "reference")
    assert fedshare("resume", str(reference.path), "--rounds", "4") == 0
    config = OmegaConf.load(folder.config)
    config.model._target_, config.workers = "test_beginnings.nudged", workers
    folder.amend(OmegaConf.to_yaml(config))
    for stray in folder.checkpoints.glob("*"):
        stray.unlink()  # so that it begins anew
    assert fedshare("resume", str(folder.path), "--rounds", "4") == 0
    assert folder.links() == reference.links()
    assert verify(folder)[0]
    whole = [tmp_path / f"{place.path.name}.safetensors" for place in (folder, reference)]
    for place, file in zip((folder, reference), whole, strict=True):
        assert fedshare("export", str(place.path), str(file), "--client", "1") == 0
    assert digests(load_file(whole[0])) == digests(load_file(whole[1]))


def nudged(**keys: object) -> torch.nn.Module:
    """A perceptron that another kind of processor would draw."""
    from fedshare.models import MLP

    model = MLP(**keys)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2**-20)
    return model


@pytest.mark.process
def test_what_a_crash_has_left_is_no_model_to_begin_with(tmp_path: Path, run: Runs) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    save_file({"head.bias": torch.ones(10)}, folder / "initial.safetensors")
    assert fedshare("run", f"folder={folder}", "workers=2", "rounds=1", *SMALL, "seed=3") == 0
    assert verify(RunFolder(folder))[0]
    assert load_file(folder / "initial.safetensors").keys() > {"head.bias"}
