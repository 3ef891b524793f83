"""Weights to start from: where they are found, and that what does not fit is named before anything is copied."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedshare import weights
from fedshare.errors import UserError
from fedshare.models import MLP
from fedshare.tensors import Tensors
from fedshare.training.scratch import Scratch


def values(model: nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def small(classes: int = 3) -> MLP:
    return MLP([4], classes, [5])


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared folder of weights."""
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    return folder


def test_a_path_comes_before_the_shared_folder(tmp_path: Path, shared: Path) -> None:
    (shared / "a.safetensors").touch()
    assert weights.locate("a.safetensors") == shared / "a.safetensors"
    (tmp_path / "a.safetensors").touch()
    assert weights.locate("a.safetensors") == Path("a.safetensors")
    assert weights.locate(str(tmp_path / "a.safetensors")) == tmp_path / "a.safetensors"


def test_a_folder_stands_for_its_model(shared: Path) -> None:
    (shared / "vit").mkdir()
    with pytest.raises(UserError, match=r"vit: holds no model\.safetensors"):
        weights.read("vit")
    save_file({"w": torch.ones(2)}, shared / "vit" / "model.safetensors")
    assert weights.locate("vit") == shared / "vit" / "model.safetensors"
    assert weights.read("vit")["w"].tolist() == [1, 1]


def test_what_is_nowhere_names_both_places(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(UserError) as raised:
        weights.locate("nothing/here")
    assert str(raised.value) == f"weights=nothing/here: there is no nothing/here or {shared}/nothing/here"
    with pytest.raises(UserError, match=f"there is no {tmp_path}/none$"):
        weights.locate(f"{tmp_path}/none")
    with pytest.raises(UserError, match=r"^weights: must be .* it is empty"):
        weights.locate("")
    for name in ("none", ""):
        with pytest.raises(UserError, match=f"^checkpoint{'=none' if name else ''}: "):
            weights.locate(name, "checkpoint")


@pytest.mark.parametrize("damage", [b"", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(damage)
    with pytest.raises(UserError, match=r"^w\.safetensors is damaged, or no \.safetensors file: ") as raised:
        weights.read("w.safetensors")
    assert "\n" not in str(raised.value)


def test_a_file_that_was_cut_short_is_damaged(tmp_path: Path) -> None:
    save_file(values(small()), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-4])
    with pytest.raises(UserError, match="is damaged"):
        weights.read("w.safetensors")


def test_all_of_the_same_model_is_copied() -> None:
    model, other = small(), small()
    assert weights.overlay(model, values(other), "w") == []
    assert all(tensor.equal(values(other)[name]) for name, tensor in values(model).items())


@pytest.mark.parametrize("head", ["another", "none"])
def test_a_head_for_other_classes_stays_fresh(head: str) -> None:
    model, other = small(3), values(small(7))
    if head == "none":
        other = {name: tensor for name, tensor in other.items() if not name.startswith("head.")}
    before = values(model)
    assert weights.overlay(model, other, "w") == ["head.weight", "head.bias"]
    for name, tensor in values(model).items():
        assert tensor.equal(before[name] if name.startswith("head.") else other[name])


def test_a_head_that_the_model_lacks_is_left_out() -> None:
    extra = values(small()) | {"head.extra": torch.ones(1)}
    assert weights.overlay(small(), extra, "w") == []


def test_types_are_the_models_and_counters_are_copied() -> None:
    model, other = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    other.double()[1].num_batches_tracked += 7
    weights.overlay(model, values(other), "w")
    assert model[0].weight.dtype == torch.float32
    assert model[0].weight.equal(other[0].weight.float())
    assert model[1].num_batches_tracked.item() == 7


def broken(value: float) -> Tensor:
    return torch.full((5, 4), value, dtype=torch.float64)


WRONG = {
    "w: does not fit the model: the model lacks z": lambda own: own | {"z": torch.ones(1)},
    "w: does not fit the model: the model lacks a, b, c and 2 more": lambda own: (
        own | dict.fromkeys("abcde", own["head.bias"])
    ),
    "w: does not fit the model: it lacks layers.0.bias": lambda own: {
        n: t for n, t in own.items() if n[-6:] != "0.bias"
    },
    "w: does not fit the model: of another shape than the model's: layers.0.weight ([5, 9], not [5, 4])": (
        lambda own: own | {"layers.0.weight": torch.ones(5, 9)}
    ),
    "w: holds NaN or infinity: layers.0.weight": lambda own: own | {"layers.0.weight": broken(float("nan"))},
    "w: holds NaN or infinity: layers.0.weight ": lambda own: own | {"layers.0.weight": broken(1e300)},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_copied(message: str) -> None:
    model, other = small(), values(small())
    before = values(model)
    with pytest.raises(UserError) as raised:
        weights.overlay(model, WRONG[message](other), "w")
    assert str(raised.value) == message.strip()
    assert all(tensor.equal(before[name]) for name, tensor in values(model).items())


class Tied(nn.Module):
    """A head that is the embedding, a counter, running statistics, and a complex parameter."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        if tied:
            self.output.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(3)
        self.phase = nn.Parameter(torch.randn(4, dtype=torch.complex64))


@pytest.mark.parametrize("kept", ["embedding.weight", "output.weight"])
def test_of_tied_tensors_one_is_enough(kept: str) -> None:
    model, other = Tied(), values(Tied())
    lacking = {"embedding.weight", "output.weight", "norm.num_batches_tracked"} - {kept}
    given = {name: tensor.clone() for name, tensor in other.items() if name not in lacking}
    assert weights.overlay(model, given, "w") == ["norm.num_batches_tracked"]
    assert torch.equal(model.output.weight, other[kept])
    assert model.output.weight is model.embedding.weight


def test_tied_tensors_that_differ_in_a_file_are_refused() -> None:
    other = values(Tied(tied=False))
    with pytest.raises(
        UserError, match=r"^w: does not fit the model: the model has one tensor for others there: output"
    ):
        weights.overlay(Tied(), other, "w")


def test_what_a_run_holds_of_a_model_fits_it() -> None:
    """Its tied, complex and moving tensors, as `Scratch` gives them."""
    scratch, model = Scratch(Tied()), Tied()
    assert weights.overlay(model, scratch.whole, "w") == ["norm.num_batches_tracked"]
    for name, tensor in Scratch(model).whole.items():
        assert torch.equal(tensor, scratch.whole[name])
