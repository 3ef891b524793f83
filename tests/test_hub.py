"""Models of timm and of transformers: theirs to the bit, and what they refuse, in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_privacy import check_against_a_loop, moved
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedshare import seeds
from fedshare.errors import UserError
from fedshare.models import Timm, Transformers, ViT
from fedshare.training.scratch import Scratch
from optional import extra

BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 32, "max_position_embeddings": 16}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 39}
GPT2 |= {"eos_token_id": 39}
DISTILBERT = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16}
FLAT: dict[str, dict[str, Any]] = {  # what knows no square mask, refuses it, or has another meaning for it
    "gpt2": GPT2,
    "megatron-bert": BERT,
    "deberta-v2": BERT,
    "modernbert": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"intermediate_size": 32, "local_attention": 4, "pad_token_id": 0, "max_position_embeddings": 16}
    | dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
}
TEXT = {"vocabulary": 40, "length": 12}
VIT = {"patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, without a network."""
    found = extra("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return found


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = extra("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return found


def tokens() -> Tensor:
    return torch.randint(1, 38, (6, 12), generator=seeds.generator(1, "tokens"))


def images(channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(2, channels, side, side, generator=seeds.generator(1, "images"))


# transformers


def test_a_saved_classifier_is_theirs_to_the_bit(transformers: Any, tmp_path: Path) -> None:
    theirs = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3)).eval()
    theirs.save_pretrained(tmp_path)
    ours = Transformers(str(tmp_path), "classification", **TEXT, classes=3, pretrained=True).eval()
    x = tokens()
    x[0, 5:] = 0
    mask = (x != 0).long()
    assert ours(x).equal(theirs(input_ids=x, attention_mask=mask).logits)
    assert ours(x).shape == (6, 3)


def test_a_saved_language_model_is_theirs_to_the_bit(transformers: Any, tmp_path: Path) -> None:
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval().bfloat16()
    theirs.save_pretrained(tmp_path)
    theirs.float()
    ours = Transformers(str(tmp_path), "language_model", **TEXT, classes=40, pretrained=True).eval()
    x = tokens()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert ours(x).equal(theirs(input_ids=x).logits)
    assert ours(x).shape == (6, 12, 40)
    fewer = Transformers(str(tmp_path), "language_model", 38, 12, 38, pretrained=True).eval()
    assert fewer(x).equal(theirs(input_ids=x).logits[..., :38])


def test_the_classifier_on_another_task_s_weights_is_new_and_comes_from_the_seed(
    transformers: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    theirs.save_pretrained(tmp_path)
    capfd.readouterr()
    made = []
    for seed in (1, 1, 2):
        with seeds.scope(seed, "model"):
            made.append(Transformers(str(tmp_path), "classification", **TEXT, classes=3, pretrained=True).state_dict())
    assert capfd.readouterr().err == ""
    body = theirs.state_dict()["bert.encoder.layer.0.output.dense.weight"]
    assert all(state["model.bert.encoder.layer.0.output.dense.weight"].equal(body) for state in made)
    assert made[0]["model.classifier.weight"].equal(made[1]["model.classifier.weight"])
    assert not made[0]["model.classifier.weight"].equal(made[2]["model.classifier.weight"])


@pytest.mark.parametrize(("name", "options"), [("bert", BERT), ("gpt2", GPT2)])
def test_padding_changes_no_class(name: str, options: dict[str, int], transformers: Any) -> None:
    model = Transformers(name, "classification", **TEXT, classes=3, options=options).eval()
    x = tokens()[:, :7]
    x[1, 3] = 0  # a token like any other where more text follows, such as GPT-2's "!"
    torch.testing.assert_close(model(F.pad(x, (0, 5))), model(x))
    assert model(torch.zeros(2, 12, dtype=torch.int64)).isfinite().all()


def square_or_not(name: str, options: dict[str, Any]) -> bool:
    """Whether the model gets a square mask; its logits are those of a flat one, to the bit."""
    with seeds.scope(1, "model"):
        model = Transformers(name, "classification", **TEXT, classes=3, options=options).eval()
    x = tokens()
    x[0, 5:] = x[1, 1:] = 0
    seen, given = x != 0, []
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["attention_mask"].shape), with_kwargs=True
    )
    ours = model(x)
    handle.remove()
    flat = model.model(input_ids=x.masked_fill(~seen, model.padding), attention_mask=seen.long()).logits
    assert (ours - flat).abs().max() == 0
    assert given in ([(6, 12)], [(6, 1, 12, 12)])
    return len(given[0]) == 4


@pytest.mark.parametrize(
    ("name", "options"),
    [("bert", BERT), ("roberta", BERT | {"pad_token_id": 1}), ("distilbert", DISTILBERT), ("ernie", BERT)],
)
def test_the_mask_of_bert_and_its_kin_is_square(name: str, options: dict[str, Any], transformers: Any) -> None:
    assert square_or_not(name, options)


def test_with_eager_attention_a_mask_is_added_and_so_stays_flat(transformers: Any) -> None:
    assert not square_or_not("bert", BERT | {"attn_implementation": "eager"})


@pytest.mark.parametrize("name", FLAT)
def test_other_masks_are_flat(name: str, transformers: Any) -> None:
    assert not square_or_not(name, FLAT[name])


@pytest.mark.parametrize(("name", "options"), [("bert", BERT), ("distilbert", DISTILBERT)])
def test_gradients_of_an_encoder_are_those_of_example_after_example(
    name: str, options: dict[str, Any], transformers: Any
) -> None:
    torch.manual_seed(0)
    model = Transformers(name, "classification", **TEXT, classes=3, options=options)
    x = tokens()
    x[0, 5:] = x[1, 1:] = 0
    names = [n for n, _ in model.named_parameters()]
    check_against_a_loop(moved(model, names), names, x, torch.tensor([0, 1, 2, 0, 1, 2]))


def test_the_end_of_a_text_is_padding_only_where_it_is_a_token(transformers: Any) -> None:
    sizes = {key: value for key, value in GPT2.items() if not key.endswith("_token_id")}  # GPT-2's own: 50256
    model = Transformers("gpt2", "classification", **TEXT, classes=3, options=sizes).eval()
    assert model.padding == 0
    x = tokens()[:, :7]
    torch.testing.assert_close(model(F.pad(x, (0, 5))), model(x))
    assert Transformers("gpt2", "classification", **TEXT, classes=3, options=GPT2).padding == 39


def test_entries_by_their_other_names_and_of_a_folder(transformers: Any, tmp_path: Path) -> None:
    other = {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 16, "num_attention_heads": 2}
    model = Transformers(
        "gpt2", "language_model", **TEXT, classes=40, options=other | {"vocab_size": 40, "eos_token_id": 1}
    )
    model.model.config.save_pretrained(tmp_path)
    again = Transformers(str(tmp_path), "language_model", **TEXT, classes=40, options={"n_layer": 2})
    assert (len(model.model.transformer.h), len(again.model.transformer.h)) == (1, 2)
    with pytest.raises(UserError, match=f"options: {tmp_path} has no entry depth"):
        Transformers(str(tmp_path), "language_model", **TEXT, classes=40, options={"depth": 2})


@pytest.mark.parametrize("pretrained", [False, True])
def test_an_architecture_alone_comes_from_a_folder(pretrained: bool, transformers: Any, tmp_path: Path) -> None:
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    theirs.save_pretrained(tmp_path)
    with seeds.scope(1, "model"):
        ours = Transformers(str(tmp_path), "language_model", **TEXT, classes=40, pretrained=pretrained)
    weight = ours.state_dict()["model.transformer.wte.weight"]
    assert weight.equal(theirs.state_dict()["transformer.wte.weight"]) == pretrained


def test_tied_weights_are_one_parameter_to_a_client(transformers: Any) -> None:
    model = Transformers("gpt2", "language_model", **TEXT, classes=40, options=GPT2)
    scratch = Scratch(model)
    assert "model.lm_head.weight" not in scratch.initial
    before = model(tokens())
    scratch.load({"model.transformer.wte.weight": torch.zeros(40, 16)})
    assert not model(tokens()).any()
    scratch.load({})
    torch.testing.assert_close(model(tokens()), before)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_clients_of_a_language_model_can_be_batched(transformers: Any) -> None:
    model = Transformers("gpt2", "language_model", **TEXT, classes=40, options=GPT2).eval()
    params = {n: torch.stack([p.detach(), p.detach() * 0.9]) for n, p in model.named_parameters()}

    def total(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).square().mean()

    x = tokens().unflatten(0, (2, 3))
    gradients = vmap(grad(total))(params, x)
    alone = grad(total)({n: p[1] for n, p in params.items()}, x[1])
    for n in alone:
        torch.testing.assert_close(gradients[n][1], alone[n], rtol=1e-3, atol=1e-5, msg=n)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "translation"}, "task is 'translation'; allowed is 'classification' or 'language_model'"),
        ({"task": "language_model"}, "classes is 3; allowed is the vocabulary, 40"),
        ({"vocabulary": 41}, "bert has 40 tokens; the data's vocabulary is 41"),
        ({"length": 17}, "bert takes 16 tokens; the data's length is 17"),
        ({"classes": 0}, "classes is 0; allowed is a whole number"),
        ({"name": "nobody/has-this"}, "Transformers: nobody/has-this: "),
        ({"pretrained": True}, "Transformers: bert: "),
        ({"options": BERT | {"num_attention_heads": 3}}, "Transformers: bert: .*16.*3"),
        (
            {"options": BERT | {"hidden_sze": 16}},
            r"options: bert has no entry hidden_sze \(did you mean hidden_size\?\)",
        ),
        ({"options": BERT | {"to_dict": 1}}, "options: bert has no entry to_dict"),
        ({"name": "gpt2", "options": GPT2 | {"n_layr": 1}}, r"gpt2 has no entry n_layr \(did you mean n_layer\?\)"),
    ],
)
def test_what_transformers_cannot_give_is_one_line(arguments: dict[str, Any], said: str, transformers: Any) -> None:
    given = {"name": "bert", "task": "classification", **TEXT, "classes": 3, "options": BERT}
    with pytest.raises(UserError, match=said) as raised:
        Transformers(**given | arguments)
    assert "\n" not in str(raised.value)


def test_folders_that_hold_no_model_or_only_pickles(transformers: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"Transformers: {tmp_path}: "):
        Transformers(str(tmp_path), "classification", **TEXT, classes=3)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        Transformers(str(tmp_path), "classification", **TEXT, classes=3, pretrained=True)
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(40, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks the weights bert\.embeddings\..* and \d+ more"):
        Transformers(str(tmp_path), "classification", **TEXT, classes=3, pretrained=True)


# timm


def small(classes: int = 10, shape: tuple[int, ...] = (3, 32, 32), **changes: Any) -> nn.Module:
    given: dict[str, Any] = {"size": 32, "options": VIT}
    model: nn.Module = Timm("vit_tiny_patch16_224", shape, classes, **given | changes)
    return model.eval()


def test_our_vit_is_timm_s(timm: Any) -> None:
    theirs, ours = small(), ViT([3, 32, 32], 10, patch=4, dim=48, depth=2, heads=3).eval()
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in ours.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(images()), theirs(images()))
    with torch.device("meta"):
        base = timm.create_model("vit_base_patch16_224", num_classes=10)
        ours = ViT([3, 224, 224], 10, patch=16, dim=768, depth=12, heads=12)
    assert {n: p.shape for n, p in base.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}


def test_images_are_resized_to_what_the_model_takes(timm: Any) -> None:
    model = small()
    larger = F.interpolate(images(side=20), (32, 32), mode="bilinear")
    assert model(images(side=20)).equal(model(larger))
    assert Timm("resnet10t", [1, 28, 28], 7, size=64)(images(1, 28)).shape == (2, 7)
    assert Timm("resnet10t", [1, 28, 28], 7)(images(1, 28)).shape == (2, 7)


def test_a_checkpoint_is_made_to_fit(timm: Any, tmp_path: Path) -> None:
    first, path = small(), str(tmp_path / "vit.safetensors")
    save_file(first.state_dict(), path)
    again = small(checkpoint=path)
    assert again(images()).equal(first(images()))
    other = small(7, checkpoint=path)
    assert other.blocks[1].attn.qkv.weight.equal(first.blocks[1].attn.qkv.weight)
    assert other(images()).shape == (2, 7)
    grey = small(shape=(1, 28, 28), size=16, checkpoint=path)
    torch.testing.assert_close(grey.patch_embed.proj.weight, first.patch_embed.proj.weight.sum(1, keepdim=True))
    assert grey.pos_embed.shape == (1, 17, 48)
    assert grey(images(1, 28)).shape == (2, 10)


def test_pretrained_weights_are_the_hub_s_safetensors(
    timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seeds.scope(1, "model"):
        published = timm.create_model("resnet10t")
    path, asked = tmp_path / "model.safetensors", []
    save_file(published.state_dict(), path)

    def download(*address: str) -> str:
        asked.append(address)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = Timm("resnet10t", [3, 32, 32], 10, pretrained=True)
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]
    assert model.layer1[0].conv1.weight.equal(published.layer1[0].conv1.weight)
    assert model(images()).shape == (2, 10)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_clients_can_be_batched(timm: Any) -> None:
    model = small()
    params = {n: torch.stack([p.detach(), p.detach() * 0.9]) for n, p in model.named_parameters()}

    def total(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).square().mean()

    x = images(side=24).unflatten(0, (2, 1))
    gradients = vmap(grad(total))(params, x)
    alone = grad(total)({n: p[1] for n, p in params.items()}, x[1])
    for n in alone:
        torch.testing.assert_close(gradients[n][1], alone[n], rtol=1e-3, atol=1e-5, msg=n)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("vit_tiny_pach16_224", {}, r"there is no model vit_tiny_pach16_224 \(did you mean vit_tiny_patch16_224, "),
        ("hf_hub:timm/resnet10t", {}, "there is no model hf_hub:timm/resnet10t"),
        ("vit_tiny_patch16_224.none", {}, "Timm: vit_tiny_patch16_224.none: "),
        ("vit_tiny_patch16_224", {"options": {"depht": 3}}, "unexpected keyword argument 'depht'"),
        ("vit_tiny_patch16_224", {"size": 0}, "Timm: size is 0"),
        ("resnet10t", {"pretrained": True}, "no model.safetensors of timm/resnet10t.c3_in1k on the hub: "),
        ("resnet10t", {"checkpoint": "none.safetensors"}, "none.safetensors"),
    ],
)
def test_what_timm_cannot_give_is_one_line(name: str, changes: dict[str, Any], said: str, timm: Any) -> None:
    with pytest.raises(UserError, match=said) as raised:
        Timm(name, [3, 32, 32], 10, **changes)
    assert "\n" not in str(raised.value)


def test_checkpoints_of_other_models_and_other_files(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(small().state_dict(), path)
    with pytest.raises(UserError, match=r"vit\.safetensors lacks .* and \d+ more"):
        Timm("resnet10t", [3, 32, 32], 10, checkpoint=str(path))
    with pytest.raises(UserError, match=r"blocks\.2"):
        small(options=VIT | {"depth": 3}, checkpoint=str(path))
    for content in (b"", b"\x80\x04K\1.", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged, or no \.safetensors file") as raised:
            small(checkpoint=str(path))
        assert "\n" not in str(raised.value)
