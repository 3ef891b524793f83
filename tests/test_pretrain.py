"""Training on all data in one place: it learns, a stopped one goes on to the same bits, and it leaves weights."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_runs import fedshare
from torch import nn

import forked
from deployed import eventually, interruptible
from fedshare import seeds, weights
from fedshare.client import Training
from fedshare.data.augment import CropFlip
from fedshare.data.dataset import Examples
from fedshare.errors import RunHalted, UserError
from fedshare.models import TextTransformer, ViT
from fedshare.pretrain import Epoch, Plan, pretrain
from fedshare.runs import checkpoint
from fedshare.simulation import Part
from fedshare.state import digests, pack, unpack
from fedshare.training.optimizers import MuonAdamW
from fedshare.training.scratch import Scratch
from world import PATIENCE

pytestmark = pytest.mark.long

ADAM = partial(torch.optim.AdamW, lr=0.01)
MUON = pytest.param(
    partial(MuonAdamW, lr=0.01),
    marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on"),
)
TINY = ["model=vit", "model.dim=16", "model.depth=2", "model.heads=2", "threads=1", "epochs=4"]
SIZES = {"patch": 4, "dim": 16, "depth": 2, "heads": 2}


def images(count: int = 64) -> Part:
    """Three classes of noise, each brighter in a row of its own."""
    random = seeds.generator(0, "images")
    y = torch.randint(3, (count,), generator=random)
    x = torch.randint(60, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    x[torch.arange(count), 0, 1 + 3 * y] += 190
    every = Examples(x, y, (0.2,), (0.2,))
    return Part(every.subset(torch.arange(count - 16)), every.subset(torch.arange(count - 16, count)))


def vit() -> Scratch:
    with seeds.scope(0, "vit"):
        return Scratch(ViT([1, 8, 8], 3, **SIZES))


def epochs(scratch: Scratch, plan: Plan, part: Part | None = None) -> list[Epoch]:
    return list(pretrain(scratch, part or images(), plan, 0))


def test_it_learns_and_says_how_well() -> None:
    plan = Plan(optimizer=ADAM, epochs=6, batch_size=16, warmup_epochs=1, augment=CropFlip(1), test_every=4)
    scratch = vit()
    records = [epoch.record for epoch in epochs(scratch, plan, images(320))]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert ["accuracy" in record for record in records] == [False, False, False, True, False, True]
    assert records[-1]["train_loss"] < 0.5 < records[0]["train_loss"]
    assert records[-1]["accuracy"] > 0.9
    assert all(record["seconds"] > 0 and record["examples_per_second"] > 0 for record in records)
    assert scratch.parameters["head.weight"].isfinite().all()


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    plan = Plan(optimizer=ADAM, epochs=5, warmup_epochs=1)
    rates = [plan.rate(step, 4) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.5), "in the middle of the fall"
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert plan.rate(20, 4) == pytest.approx(0)
    assert Plan(optimizer=ADAM, epochs=1).rate(0, 4) == 1
    assert Plan(optimizer=ADAM, epochs=1, warmup_epochs=1).rate(3, 4) == 1


def test_the_first_step_by_hand() -> None:
    part = images(20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    plan = Plan(optimizer=partial(torch.optim.SGD, lr=0.5), epochs=1, batch_size=4)
    (epoch,) = pretrain(Scratch(model), part, plan, 0)
    assert epoch.record["train_loss"] == pytest.approx(math.log(3)), "one step, and before it all classes are alike"
    shares = torch.bincount(part.train.y, minlength=3) / 4
    assert torch.allclose(model[1].bias, 0.5 * (shares - 1 / 3)), "lr times the mean gradient of the cross-entropy"


def test_smoothing_and_ignored_targets_in_the_loss() -> None:
    model = nn.Identity()
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    targets = torch.tensor([[0, -100]])
    loss, count = Plan(optimizer=ADAM, epochs=1, label_smoothing=0.5).loss(model, (logits, targets))
    right = math.log(1 + math.exp(-2))
    assert count.item() == 1
    assert loss.item() == pytest.approx(0.75 * right + 0.25 * (right + 2))
    nothing, count = Plan(optimizer=ADAM, epochs=1).loss(model, (logits, torch.full((1, 2), -100)))
    assert (nothing.item(), count.item()) == (0, 0)


def test_a_language_model_learns_to_count() -> None:
    x = (torch.arange(40)[:, None] + torch.arange(6)) % 5 + 1
    y = torch.where(torch.arange(6) < 1, -100, x % 5 + 1)
    part = Part(Examples(x[:32], y[:32]), Examples(x[32:], y[32:]))
    with seeds.scope(0, "letters"):
        scratch = Scratch(TextTransformer(6, 6, 6, dim=16, depth=1, heads=2, dropout=0.1, causal=True))
    plan = Plan(optimizer=ADAM, epochs=12, batch_size=8, augment=CropFlip(), label_smoothing=0.01)
    assert epochs(scratch, plan, part)[-1].record["accuracy"] == 1.0


def test_bfloat16_computes_otherwise_and_keeps_the_weights_as_they_are() -> None:
    one, other = vit(), vit()
    made = {"optimizer": ADAM, "epochs": 1, "batch_size": 16}
    loss = epochs(one, Plan(**made))[0].record["train_loss"]
    brief = epochs(other, Plan(**made, precision="bfloat16"))[0].record["train_loss"]
    assert brief == pytest.approx(loss, rel=0.02)
    assert brief != loss
    assert other.flat.dtype == torch.float32


class Odd(nn.Module):
    """Dropout, a running statistic, a counter, and a memory that `state_dict` does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, 3)
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps = self.steps + self.training
        return self.head(self.dropout(self.norm(x.flatten(1)))) * (1 + self.steps / 100)


def odd() -> Scratch:
    with seeds.scope(0, "odd"):
        return Scratch(Odd())


@pytest.mark.parametrize("make", [vit, odd])
@pytest.mark.parametrize(
    "optimizer", [ADAM, partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.Adagrad, lr=0.1), MUON]
)
def test_an_interrupted_generator_goes_on_to_the_same_bits(
    make: Callable[[], Scratch], optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    plan = Plan(optimizer=optimizer, epochs=4, batch_size=16, warmup_epochs=1, augment=CropFlip(1))
    whole, half, rest = (make() for _ in range(3))
    last = epochs(whole, plan)[-1]
    running = pretrain(half, images(), plan, 0)
    next(running)
    saved = pack(next(running).memory)
    running.close()
    again = list(pretrain(rest, images(), plan, 0, unpack(saved)))
    assert [epoch.number for epoch in again] == [3, 4]
    assert digests(again[-1].memory) == digests(last.memory)
    quick = {"seconds", "examples_per_second"}
    one, two = ({key: entry.record[key] for key in entry.record.keys() - quick} for entry in (again[-1], last))
    assert one == two
    assert not whole.flat.equal(half.flat)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
def test_muon_steps_matrices_and_adamw_the_rest_at_one_rate() -> None:
    """Against the two by themselves, under a schedule."""
    start = [torch.randn(4, 3, generator=seeds.generator(0, "w")), torch.randn(3, generator=seeds.generator(0, "b"))]
    ours, apart = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    keys = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    both = MuonAdamW(ours, **keys)
    two = [
        torch.optim.Muon(apart[:1], adjust_lr_fn="match_rms_adamw", **keys),
        torch.optim.AdamW(apart[1:], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0),
    ]
    for step in range(3):
        for optimizer, parameters in ((both, ours), *((part, apart) for part in two)):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            for parameter in parameters:
                parameter.grad = torch.cos(parameter.detach() * (step + 1))
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, apart, strict=True))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
def test_muon_on_vectors_alone_is_refused_in_one_line() -> None:
    said = "MuonAdamW: none of the parameters is a matrix; flat=true makes vectors of them"
    with pytest.raises(ValueError, match=said):
        MuonAdamW([nn.Parameter(torch.zeros(3))])
    with pytest.raises(UserError) as raised:
        Training(optimizer=MuonAdamW)
    assert str(raised.value) == f"optimizer: {said}; try flat=false"
    assert not Training(optimizer=MuonAdamW, flat=False).flat
    MuonAdamW([nn.Parameter(torch.zeros(2, 3, 1, 1)), nn.Parameter(torch.zeros(3))])  # of a CNN


def test_a_memory_of_another_model_is_refused() -> None:
    plan = Plan(optimizer=ADAM, epochs=2, batch_size=16)
    memory = epochs(odd(), plan)[0].memory
    with pytest.raises(UserError, match="of another model"):
        list(pretrain(vit(), images(), plan, 0, memory))


def test_divergence_halts_and_names_the_epoch() -> None:
    plan = Plan(optimizer=partial(torch.optim.SGD, lr=1e30), epochs=3, batch_size=16)
    with pytest.raises(RunHalted, match=r"^epoch 1: the loss is not finite any more: try a lower optimizer\.lr"):
        epochs(vit(), plan)


def test_a_crop_is_a_part_of_the_padded_image_maybe_mirrored() -> None:
    images = torch.arange(1.0, 1 + 200 * 2 * 3 * 4).view(200, 2, 3, 4)
    out = CropFlip(padding=1)(images, seeds.generator(0))
    assert out.shape == images.shape
    padded = nn.functional.pad(images, [1] * 4)
    found = set()
    for before, after in zip(padded, out, strict=True):
        crops = {(d, r): before[:, d : d + 3, r : r + 4] for d in range(3) for r in range(3)}
        places = {
            (*at, flip)
            for at, crop in crops.items()
            for flip in (0, 1)
            if (crop.flip(2) if flip else crop).equal(after)
        }
        assert len(places) == 1
        found |= places
    assert len(found) == 18, "every shift, mirrored and not"
    assert CropFlip(0, flip=False)(images, seeds.generator(0)).equal(images)
    tokens = torch.ones(3, 7, dtype=torch.int64)
    assert CropFlip()(tokens, seeds.generator(0)) is tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretrain") / "tiny"
    assert fedshare("pretrain", *TINY, f"folder={path}") == 0
    return path


def test_the_folder_holds_weights_for_other_classes(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "checkpoints", "metrics.jsonl", "model.safetensors", "pretrain.yaml"),
        *("mark", "versions.json"),
    }
    with safe_open(folder / "model.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert (config["seed"], config["threads"], config["model"]["dim"]) == (0, 1, 16)
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert checkpoint.rounds(folder / "checkpoints") == [4, 3]
    tensors = weights.read(str(folder))
    model = ViT([1, 8, 8], 5, **SIZES)
    assert weights.overlay(model, tensors, "tiny") == ["head.weight", "head.bias"]
    assert model.pos_embed.equal(tensors["pos_embed"])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert fedshare("pretrain", *TINY, f"folder={tmp_path}/{seed}", f"seed={seed}") == 0
    first, again, other = (path / "model.safetensors" for path in (folder, tmp_path / "0", tmp_path / "1"))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.process
def test_a_killed_one_goes_on_to_the_same_bits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "killed"
    command, environment = (
        ["-m", "fedshare", "pretrain", *TINY, f"folder={path}"],
        os.environ | {"OMP_NUM_THREADS": "1"},
    )
    process = forked.python(*command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout
    for line in process.stdout:
        if line.split()[0] == "2":
            break
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()
    assert not (path / "model.safetensors").exists(), "killed too late to prove anything"
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_l')
    assert fedshare("pretrain", "--resume", str(path)) == 0
    assert "accuracy 0." in capsys.readouterr().out
    for name in ("model.safetensors", "checkpoints/round-000004.safetensors"):
        mine, other = (weights.read(str(place / name)) for place in (path, folder))
        assert digests(mine) == digests(other)
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, path], check=True)
    newest = path / "checkpoints" / "round-000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    (path / "model.safetensors").unlink()
    assert fedshare("pretrain", "--resume", str(path)) == 0
    assert "round-000004.safetensors is damaged" in capsys.readouterr().err
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.process
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "stopped"
    with interruptible("pretrain", *TINY, "epochs=1000000", f"folder={path}") as process:
        eventually((path / "checkpoints" / "round-000001.json").exists, "a checkpoint")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stdout
        out = process.stdout.read()
    assert f"! stopped; `fedshare pretrain --resume {path}` goes on after epoch " in out


def test_weights_are_where_it_starts(folder: Path, tmp_path: Path) -> None:
    start = ["model.classes=10", f"weights={folder}", "optimizer.lr=0.0", "epochs=1", "optimizer.weight_decay=0"]
    assert fedshare("pretrain", *TINY, *start, f"folder={tmp_path}/next") == 0
    assert digests(weights.read(str(tmp_path / "next"))) == digests(weights.read(str(folder)))


WRONG = {
    "optimiser.lr=1": "optimiser.lr: no such key (did you mean optimizer?); allowed: data, model, task, weights,",
    "rounds=3": "rounds: no such key",
    "strategy=fedavg": "strategy: no such key",
    "epochs=0": "epochs=0: must be at least 1",
    "batch_size=0": "batch_size=0: must be at least 1",
    "threads=0": "threads=0: must be from 1 to 1024",
    "label_smoothing=2": "label_smoothing=2.0: must be from 0 to 1",
    "warmup_epochs=21": "warmup_epochs=21: must be at most epochs, 20",
    "precision=half": "precision=half: must be float32 or bfloat16",
    "optimizer.lr=-1": "optimizer: Invalid learning rate: -1",
    "~optimizer._partial_": "optimizer: ",
    "augment.padding=-1": "augment: padding must be at least 0, not -1",
    "augment._target_=torch.nn.Flatten": "augment.",
    "augment={_target_:torch.nn.ReLU}": "augment",
    "weights=nowhere": "weights=nowhere: there is no nowhere or ",
    "device=moon": "device=moon: ",
    "data.classes=7": "data.classes=7: digits has 10",
    "-m epochs=1,0": "epochs=0: must be at least 1 (job 1: epochs=0)",
    "-m precision=float32,half": "precision=half: must be float32 or bfloat16 (job 1: precision=half)",
    "--resume": "argument --resume: expected one argument; see fedshare pretrain --help",
    "--resume nowhere": "nowhere: not a folder of `fedshare pretrain`: it has no pretrain.yaml",
    "--cfg nope": "argument -c/--cfg: invalid choice: 'nope' (choose from ",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_one_line_and_creates_nothing(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedshare("pretrain", *override.split()) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"fedshare: {WRONG[override]}"), err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert fedshare("pretrain", *TINY, f"folder={folder}") == 2
    go_on = f"go on with `fedshare pretrain --resume {folder}`, or name another"
    assert capfd.readouterr().err == f"fedshare: folder={folder}: is not empty: {go_on}\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "thesis.tex").touch()
    assert fedshare("pretrain", *TINY, f"folder={tmp_path}") == 2
    assert capfd.readouterr().err == f"fedshare: folder={tmp_path}: is not empty: name another\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["- a list", "epochs: [", "epochs: 3"])
def test_a_config_that_is_none_is_damaged(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pretrain.yaml").write_text(text)
    assert fedshare("pretrain", "--resume", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fedshare: {tmp_path}/pretrain.yaml is damaged: ")
    assert err.count("\n") == 1


def test_divergence_exits_with_3_and_leaves_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fedshare("pretrain", *TINY, "optimizer.lr=1e30", f"folder={tmp_path}/run") == 3
    assert capfd.readouterr().err.startswith("fedshare: epoch 1: the loss is not finite any more: try a lower")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_sweep_leaves_a_folder_a_job(tmp_path: Path) -> None:
    assert fedshare("pretrain", "-m", *TINY, "epochs=1", "seed=0,1", f"folder={tmp_path}/sweep") == 0
    assert all((tmp_path / "sweep" / str(job) / "model.safetensors").exists() for job in range(2))


def test_cfg_and_help_create_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedshare("pretrain", "--cfg", "job", "data=cifar100", "model=vit") == 0
    assert "_target_: fedshare.models.ViT" in capfd.readouterr().out
    assert fedshare("pretrain", "--help") == 0
    out = capfd.readouterr().out
    for line in ("fedshare pretrain --resume FOLDER", "label_smoothing: 0.0\n"):
        assert line in out
    assert list(tmp_path.iterdir()) == []
