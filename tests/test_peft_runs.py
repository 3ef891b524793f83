"""Runs over a partition of the parameters, from the command line: what they send, say, save, and refuse."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

import world
from fedshare.data import digits
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.experiments.config import build
from fedshare.experiments.config.application import CONF
from fedshare.experiments.config.compose import resolved
from fedshare.experiments.config.instantiate import make
from fedshare.peft import Method
from fedshare.runs import RunFolder, checkpoint, verify
from fedshare.tensors import digest
from fedshare.training.parts import Role
from optional import NEEDED, needs

pytestmark = pytest.mark.long

VIT = ["model=vit", "model.dim=16", "model.depth=2", "model.heads=2"]
SMALL = [*VIT, "partition.clients=4", "client.epochs=1", "client.batch_size=50", "rounds=2", "workers=0"]
OPTIONS = sorted(path.stem for path in (CONF / "peft").glob("*.yaml"))
each_option = pytest.mark.parametrize(
    "option",
    [pytest.param(option, marks=needs("peft")) if ("peft", option) in NEEDED else option for option in OPTIONS],
)


def fedshare(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@each_option
def test_every_option_can_be_made_and_fits_the_vision_transformer(option: str) -> None:
    fitting = {
        "shards": ["peft.budget=3"],
        "compacter": ["peft.reduction=4"],
        "vblora": ["peft.config.vector_length=8"],
    }  # to a model so small
    config = resolved([*SMALL, f"peft={option}", *fitting.get(option, [])])
    assert isinstance(make(config.peft, "peft"), Method)
    scratch = build.population_of(config).scratch
    assert scratch.shared
    assert (option == "full") == (len(scratch.shared) == len(scratch.shapes))
    groups = {scratch.parts.groups[name] for name in (*scratch.shared, *scratch.local)}
    assert "head" in groups
    assert len(groups) == (1 if option == "head" else 2)


BY_PEFT = {
    "VeRA": ["peft=vera", "peft.config.r=8"],
    "VB-LoRA": ["peft=vblora", "peft.config.vector_length=8", "peft.config.num_vectors=6"],
    "LoHa": ["peft=ia3", "~peft.config", "+peft.config={_target_: peft.LoHaConfig, r: 2, target_modules: [qkv]}"],
}


@needs("peft")
@pytest.mark.parametrize("method", BY_PEFT)
def test_a_run_by_any_config_of_peft_trains_goes_on_and_is_the_same_again(method: str, tmp_path: Path) -> None:
    runs = [tmp_path / "short", tmp_path / "long"]
    for folder, rounds in zip(runs, (2, 3), strict=True):
        given = [*SMALL, *BY_PEFT[method], f"rounds={rounds}", "client.optimizer.lr=0.1"]
        assert fedshare("run", *given, f"folder={folder}") == 0
    assert fedshare("resume", str(runs[0]), "--rounds", "3") == 0
    short, long = map(RunFolder.open, runs)
    assert verify(short, long)[0]
    assert short.links() == long.links()
    first, last = load_file(short.initial), load_file(short.model)
    assert all(not torch.equal(tensor, first[name]) for name, tensor in last.items())
    frozen = {name for name in first if name not in last}
    assert {name for name in frozen if "vera_" in name} == {
        name for name in first if "vera_A" in name or "vera_B" in name
    }


def test_fedpeft_brings_its_method_and_the_command_line_wins() -> None:
    assert resolved(["strategy=fedpeft"]).peft._target_ == "fedshare.peft.Bias"
    for overrides in (["strategy=fedpeft", "peft=prompt"], ["peft=prompt", "strategy=fedpeft"]):
        assert resolved(overrides).peft._target_ == "fedshare.peft.Prompt"
    assert resolved([]).peft._target_ == "fedshare.peft.Full"


def test_a_run_says_what_each_group_cost_beside_full_sharing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert fedshare("run", *SMALL, "strategy=fedpeft", f"folder={folder}", "evaluate_first=true") == 0
    said = capsys.readouterr().out
    run = RunFolder.open(folder)
    scratch = build.population_of(resolved([*SMALL, "strategy=fedpeft"])).scratch
    size = {
        group: 4 * sum(scratch.shapes[name].numel() for name in scratch.shared if scratch.parts.groups[name] == group)
        for group in ("bias", "head")
    }
    whole = 4 * scratch.size
    for row in run.rows():
        for way in ("up", "down"):
            assert row[f"bytes_{way}_by_group"] == {f"params/{group}": 4 * size[group] for group in size}
            assert row[f"bytes_{way}"] == 4 * sum(size.values())
            assert row[f"bytes_{way}_full"] == 4 * whole
    assert f"{scratch.size:,} parameters, {sum(size.values()) // 4:,} of them shared" in said
    assert f"{100 * sum(size.values()) / whole:.3g} % of full sharing" in said
    assert "params/bias: " in said
    assert load_file(run.model).keys() == set(scratch.shared)
    assert verify(run)[0]

    before = run.rows()[0]["before"]
    assert 0 <= before["accuracy"] < 0.35
    assert before["loss"] == pytest.approx(2.3, abs=0.2)
    assert "before" not in run.rows()[1]
    plain = tmp_path / "plain"
    assert fedshare("run", *SMALL, "strategy=fedpeft", f"folder={plain}") == 0
    assert verify(run, RunFolder.open(plain))[0], "testing changes no bit"


def test_without_a_partition_all_is_shared_and_nothing_more_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedshare("run", *SMALL, "model=logistic", "~model.dim", f"folder={tmp_path / 'x'}") == 2
    assert fedshare("run", "partition.clients=4", "rounds=1", "workers=0", f"folder={tmp_path / 'run'}") == 0
    said = capsys.readouterr().out
    assert "of them shared" not in said
    assert "full sharing" not in said
    (row,) = RunFolder.open(tmp_path / "run").rows()
    assert row["bytes_up"] == row["bytes_up_full"] == sum(row["bytes_up_by_group"].values())


def test_a_run_starts_from_weights_and_trains_a_fresh_head_where_classes_differ(tmp_path: Path) -> None:
    config = resolved([*SMALL, "data.classes=10"])
    backbone = world.backbone(config)
    tensors = {name: tensor + 0.25 for name, tensor in backbone.state_dict().items()}
    tensors["head.weight"], tensors["head.bias"] = torch.ones(7, 16), torch.ones(7)
    save_file(tensors, tmp_path / "seven.safetensors")
    path = tmp_path / "seven.safetensors"
    scratch = build.population_of(resolved([*SMALL, "peft=adapter", f"weights={path}"])).scratch
    for name, tensor in tensors.items():
        if name.startswith("head."):
            assert torch.equal(scratch.whole[name], backbone.state_dict()[name])
        else:
            assert torch.equal(scratch.whole[name], tensor)
            assert scratch.parts.roles[name] is Role.FROZEN


def test_scarce_data_are_a_part_of_the_training_examples_and_all_of_the_test(tmp_path: Path) -> None:
    whole = digits()
    scarce = whole.scarce(100, seed=1)
    assert scarce.train_size == 100
    assert torch.equal(scarce.pool.x[100:], whole.pool.x[whole.train_size :])
    rows = {digest(image) for image in whole.pool.x[: whole.train_size]}
    assert all(digest(image) in rows for image in scarce.pool.x[:100])
    assert not torch.equal(scarce.pool.x[:100], whole.scarce(100, seed=2).pool.x[:100])
    config = resolved([*SMALL, "train_examples=100"])
    assert sum(build.population_of(config).sizes()) == 100
    for count in (0, 1443):
        with pytest.raises(UserError, match=rf"train_examples={count}: digits has 1442; allowed is 1 to that"):
            whole.scarce(count, 0)


def backbone(path: Path, shift: float = 0.25) -> Path:
    config = resolved(SMALL)
    model = world.backbone(config)
    save_file({name: tensor + shift for name, tensor in model.state_dict().items()}, path)
    return path


def test_a_run_does_not_go_on_with_another_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = backbone(tmp_path / "backbone.safetensors"), tmp_path / "run"
    overrides = [*SMALL, "strategy=fedpeft", f"weights={path}"]
    assert fedshare("run", *overrides, f"folder={folder}") == 0
    backbone(path, 0.5)
    assert fedshare("resume", str(folder), "--rounds", "3") == 2
    assert f"{folder}: began with another model: other weights lie at weights={path} now" in capsys.readouterr().err
    assert fedshare("run", *overrides, f"folder={tmp_path / 'other'}") == 0
    same, line = verify(RunFolder.open(folder), RunFolder.open(tmp_path / "other"))
    assert not same
    assert line.startswith("differ first in round 1: server: params/")
    assert "; so do the models that they began with" in line
    backbone(path, 0.25)
    assert fedshare("resume", str(folder), "--rounds", "3") == 0
    assert verify(RunFolder.open(folder))[0]


def test_an_exported_model_is_whole_and_can_be_started_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, file = backbone(tmp_path / "backbone.safetensors"), tmp_path / "run", tmp_path / "whole.safetensors"
    overrides = [*SMALL, "strategy=fedpeft", f"weights={path}", "peft.local=[blocks.0.*]"]
    assert fedshare("run", *overrides, f"folder={folder}") == 0
    assert fedshare("export", str(folder), str(file)) == 0
    whole, shared = load_file(file), load_file(folder / "model.safetensors")
    first = load_file(path)
    assert whole.keys() == first.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, shared.get(name, first[name]))
    assert fedshare("run", *SMALL, f"weights={file}", f"folder={tmp_path / 'next'}") == 0

    own = tmp_path / "own.safetensors"
    assert fedshare("export", str(folder), str(own), "--client", "2") == 0
    local = checkpoint.load(folder / "checkpoints", 2).clients[2]["local"]
    assert local
    assert all(torch.equal(load_file(own)[name], tensor) for name, tensor in local.items())

    capsys.readouterr()
    for arguments, line in (
        ([str(own)], "is there already"),
        ([str(tmp_path / "x.pt")], "must end in .safetensors"),
        ([str(tmp_path / "y.safetensors"), "--client", "4"], "--client 4: there are 4, from 0 on"),
    ):
        assert fedshare("export", str(folder), *arguments) == 2
        assert line in capsys.readouterr().err


def test_a_run_of_a_version_without_partitions_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert fedshare("run", "model=logistic", "rounds=1", "workers=0", "partition.clients=4", f"folder={folder}") == 0
    run = RunFolder.open(folder)
    config = OmegaConf.load(run.config)
    for key in ("peft", "weights", "train_examples", "evaluate_first"):
        del config[key]
    OmegaConf.save(config, run.config)
    run.versions.unlink()
    run.seals.path.unlink()
    assert fedshare("resume", str(folder), "--rounds", "2") == 0
    assert len(run.rows()) == 2


def test_a_client_s_own_weights_are_where_its_node_config_says(tmp_path: Path) -> None:
    from fedshare.experiments.hosts import agreement

    path = backbone(tmp_path / "here.safetensors")
    config = resolved([*SMALL, "strategy=fedpeft", "weights=/where/the/server/has/it.safetensors"])
    text, population = agreement.population({"config": OmegaConf.to_yaml(config)}, {"weights": str(path)})
    assert text == agreement.agreed(config)
    assert torch.equal(population.scratch.whole["pos_embed"], load_file(path)["pos_embed"])


def test_a_sweep_finds_what_is_wrong_with_a_partition_or_weights_before_its_first_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for overrides, line in (
        (["peft=adapter", "peft.reduction=8,0"], "reduction must be at least 1, not 0"),
        (["weights=null,nowhere"], "weights=nowhere: there is no"),
    ):
        assert fedshare("run", "-m", *SMALL, *overrides) == 2
        assert line in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


LINES: dict[str, tuple[list[str], str]] = {
    "no such option": (["peft=lra"], "peft=lra: no such peft (did you mean lora?)"),
    "no such key": (["peft=prompt", "peft.tokens=3"], "peft.tokens: no such key"),
    "no blocks": (["peft=prompt", "model=mlp"], "peft.blocks=blocks: the model has no sequence of blocks"),
    "no file": (["weights=nowhere"], "weights=nowhere"),
    "not a tensor": (["peft=bias", "peft.local=[x]"], "peft.local: x is none of the tensors that are trained"),
    "a wrong type": (["peft=prompt", "peft.count=many"], "peft.count=many: must be an integer"),
    "range": (["peft=adapter", "peft.reduction=0"], "peft: reduction must be at least 1, not 0"),
    "init": (["peft=adapter", "peft.init=none"], "peft.init=none: must be one of up, both"),
}


@pytest.mark.parametrize("case", LINES)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_created(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides, line = LINES[case]
    assert fedshare("run", "model=vit", "model.dim=16", "model.heads=2", *overrides) == 2 or case == "no blocks"
    said = capsys.readouterr().err
    if case == "no blocks":
        assert fedshare("run", *overrides) == 2
        said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_terms_of_a_deployment_cover_what_is_frozen() -> None:
    """Oracle 2: who joins with another backbone, by as little as a bit, is refused."""
    from fedshare.experiments.hosts import agreement
    from fedshare.transport.flower.participant import Terms

    config = resolved([*SMALL, "strategy=fedpeft"])
    one, two, other = (build.population_of(config) for _ in range(3))
    assert Terms.of(agreement.agreed(config), one) == Terms.of(agreement.agreed(config), two)
    name = next(name for name in other.scratch.whole if other.scratch.parts.roles[name] is Role.FROZEN)
    other.scratch.whole[name].view(-1)[0] += 1e-6
    assert Terms.of(agreement.agreed(config), other) != Terms.of(agreement.agreed(config), two)


class TiedNet(nn.Module):
    """Two layers with one weight, running statistics, and a counter."""

    def __init__(self, shape: list[int], classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.second(self.first(x.flatten(1)).relu())))
        return logits


ROUND_TRIPS = {
    "tied tensors and statistics": ["model=logistic", "model._target_=test_peft_runs.TiedNet"],
    "all of it": ["peft=full"],
    "a frozen part": ["peft=bias"],
    "a local part": ["peft.local=[head.*]"],
    "prompts": ["peft=prompt"],
    "adapters": ["peft=adapter"],
    "LoRA": ["peft=lora"],
    "FedSA-LoRA": ["peft=fedsa_lora"],
    "VeRA": ["peft=vera", "peft.config.r=8"],
}
BY_LIBRARY = {"LoRA", "FedSA-LoRA", "VeRA"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs("peft")) if kind in BY_LIBRARY else kind for kind in ROUND_TRIPS]
)
def test_a_run_s_model_is_good_as_another_run_s_weights(kind: str, tmp_path: Path) -> None:
    small = SMALL[len(VIT) :] if "tied" in kind else SMALL
    first, overrides = tmp_path / "first", [*small, *ROUND_TRIPS[kind]]
    assert fedshare("run", *overrides, f"folder={first}") == 0
    held, trained = load_file(first / "initial.safetensors"), load_file(first / "model.safetensors")
    for place in (first, first / "model.safetensors"):
        whole = build.population_of(resolved([*overrides, f"weights={place}", "seed=5"])).scratch.whole
        assert whole.keys() == held.keys() >= trained.keys()
        assert all(torch.equal(tensor, trained.get(name, held[name])) for name, tensor in whole.items())
    second, third = tmp_path / "second", tmp_path / "third"
    assert fedshare("run", *overrides, f"weights={first}", "seed=5", f"folder={second}") == 0
    assert verify(RunFolder.open(second))[0]
    assert fedshare("run", *overrides, f"weights={second}", "seed=6", f"folder={third}") == 0


@needs("peft")
def test_a_run_s_adapters_bring_the_backbone_that_they_were_trained_on(tmp_path: Path) -> None:
    """Though its tensors have other names since `peft` has put its layers around them."""
    plain, first, second = (tmp_path / name for name in ("plain", "first", "second"))
    assert fedshare("run", *SMALL, f"folder={plain}") == 0
    assert fedshare("run", *SMALL, "peft=lora", f"weights={plain}", "seed=5", f"folder={first}") == 0
    assert fedshare("run", *SMALL, "peft=lora", f"weights={first}", "seed=6", f"folder={second}") == 0
    backbone = load_file(plain / "model.safetensors")
    for run in (first, second):
        trained = load_file(run / "model.safetensors")
        whole = build.population_of(resolved([*SMALL, "peft=lora", f"weights={run}", "seed=7"])).scratch.whole
        assert all(torch.equal(tensor, whole[name]) for name, tensor in trained.items())
        kept = {name.replace("base_layer.", ""): tensor for name, tensor in whole.items() if name not in trained}
        assert len(kept) > 20
        assert all(torch.equal(tensor, backbone[name]) for name, tensor in kept.items())


@needs("peft")
def test_a_run_s_model_with_what_its_peft_adds_is_refused_by_a_model_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert fedshare("run", *SMALL, "peft=lora", f"folder={first}") == 0
    for peft in ("full", "prompt", "ia3"):
        capsys.readouterr()
        assert fedshare("run", *SMALL, f"peft={peft}", f"weights={first}", f"folder={second}") == 2
        line = capsys.readouterr().err
        assert line.startswith(f"fedshare: weights={first}: does not fit the model: the model lacks blocks.0.attn.qkv.")
        assert line.count("\n") == 1
        assert not second.exists()
