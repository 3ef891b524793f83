"""Llama, and the files of llama2.c: against transformers' own, against damage, and the published one where it is."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_runs import fedshare
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedshare import seeds
from fedshare.data.sources import TINY_SHAKESPEARE
from fedshare.data.tokenizer import Llama2cTokenizer
from fedshare.errors import UserError
from fedshare.models import Llama, Llama2c
from fedshare.models.llama2c import read_llama2c
from fedshare.runs import RunFolder
from optional import extra

SIZES = {"dim": 24, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 20}
HEADER = {"dim": 24, "hidden": 20, "depth": 2, "heads": 4, "kv_heads": 2, "vocabulary": 30, "length": 16}
WEIGHTS = "stories260K/stories260K.bin"
STORY = (
    "Once upon a time, there was a boy named Tom. He had a big red ball and he loved to play with it. One day, his "
    "friend Lily came to his house. She wanted to play too, so Tom gave her the ball. They were very happy."
)


def tiny(length: int = 16) -> Llama:
    with seeds.scope(1, "model"):
        return Llama(30, length, 30, **SIZES).eval()


def tokens(size: int = 6, length: int = 12) -> Tensor:
    return torch.randint(1, 30, (size, length), generator=seeds.generator(1, "tokens"))


def file_of(model: Llama, heads: int = 4, kv_heads: int = 2, length: int = 16) -> bytes:
    """What llama2.c's first exporter writes, array by array."""
    state = model.state_dict()
    depth, (vocabulary, dim) = len(model.blocks), state["embed.weight"].shape
    header = (dim, len(state["blocks.0.mlp.gate_proj.weight"]), depth, heads, kv_heads, vocabulary, length)
    kinds = ["norm1", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"]
    kinds += ["norm2", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]
    arrays = [state["embed.weight"]]
    arrays += [state[f"blocks.{block}.{kind}.weight"] for kind in kinds for block in range(depth)]
    arrays += [state["norm.weight"], model.cos, model.sin]
    return struct.pack("<7i", *header) + b"".join(array.numpy().astype("<f4").tobytes() for array in arrays)


def published() -> None:
    """Skip where stories260K is not in $FEDSHARE_DATA."""
    if not (Path(os.environ.get("FEDSHARE_DATA", "/nonexistent")) / "weights" / WEIGHTS).is_file():
        pytest.skip(f"set FEDSHARE_DATA to the folder that has weights/{WEIGHTS}")


# The architecture


def test_it_is_the_llama_of_transformers() -> None:
    transformers = extra("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    ours, theirs = tiny(), transformers.LlamaForCausalLM(config).eval()
    renamed = {"embed": "embed_tokens", "blocks": "layers", "attn": "self_attn"}
    renamed |= {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    state = {}
    for name, tensor in ours.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # a head's even rows, then its odd ones: they turn the two halves
            tensor = tensor.view(-1, 3, 2, 24).transpose(1, 2).reshape(-1, 24)
        state["model." + ".".join(renamed.get(part, part) for part in name.split("."))] = tensor
    assert theirs.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]  # which is the embedding
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits)


def test_each_parameter_has_one_name_and_the_tables_are_not_saved() -> None:
    model = tiny()
    names = [name for name, _ in model.named_parameters()]
    assert set(model.state_dict()) == set(names)
    assert [name for name, _ in model.named_buffers()] == ["cos", "sin"]
    assert sum(p.numel() for p in model.parameters()) == 30 * 24 + 2 * (24 * (24 + 12 + 12 + 24 + 3 * 20) + 48) + 24
    assert not any("head" in name or "bias" in name for name in names)


def test_it_sees_no_later_token_and_no_padding() -> None:
    model, x = tiny(), tokens()
    changed = x.clone()
    changed[:, 5] = changed[:, 5] % 29 + 1
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax((0, 2)).min() > 1e-4
    torch.testing.assert_close(model(F.pad(x[:, :7], (0, 5)))[:, :7], before[:, :7])


def test_it_learns_a_tiny_batch_by_heart_and_every_parameter_takes_part() -> None:
    model, x = tiny(), tokens()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
    # The first token of a text says nothing about the second where two texts begin alike; the others are known.
    assert (model(x)[:, 1:-1].argmax(-1) == x[:, 2:]).float().mean() > 0.95


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_clients_can_be_batched() -> None:
    model, x = tiny(), tokens()
    params = {n: torch.stack([p.detach(), p.detach() * 0.9, p.detach() * 1.1]) for n, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        logits = functional_call(model, params, (x,))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    gradients = vmap(grad(loss))(params, x.unflatten(0, (3, 2)))
    for client in range(3):
        alone = grad(loss)({n: p[client] for n, p in params.items()}, x[2 * client : 2 * client + 2])
        for n in alone:
            torch.testing.assert_close(gradients[n][client], alone[n], rtol=1e-3, atol=1e-5, msg=n)


def test_torch_compile_takes_it_whole() -> None:
    model, x = tiny(), tokens()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 2}, "Llama: classes is 2; allowed is the vocabulary, 30"),
        ({"length": 0}, "Llama: length is 0"),
        ({"depth": 0}, "Llama: depth is 0"),
        ({"hidden": 1.5}, r"Llama: hidden is 1\.5"),
        ({"dim": 20}, "Llama: dim is 20; allowed with 4 heads is a multiple of 8"),
        ({"kv_heads": 3}, "Llama: kv_heads is 3; allowed is a divisor of heads, 4"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Llama(**{"vocabulary": 30, "length": 8, "classes": 30} | SIZES | changes)
    assert "\n" not in str(raised.value)


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="a text has 9 tokens; allowed is up to length, 8"):
        tiny(8)(tokens(1, 9))


# Files of llama2.c


def test_a_file_gives_the_model_that_wrote_it(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "tiny.bin"
    path.write_bytes(file_of(model))
    again = Llama2c(30, 12, 30, str(path))
    assert again(tokens()).equal(model(tokens()))
    config, tensors = read_llama2c(path)
    assert vars(config) == HEADER
    assert set(tensors) == {*model.state_dict(), "cos", "sin"}


def header(**changes: int) -> bytes:
    return struct.pack("<7i", *(HEADER | changes).values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda whole: b"", "not a llama2.c checkpoint of the first format, by its first 28 bytes"),
        (lambda whole: whole[:27], "not a llama2.c checkpoint"),
        (lambda whole: b"<html><body>Not found</body></html>" * 9, "not a llama2.c checkpoint|damaged"),
        (lambda whole: b"24ka" + whole[4:], "not a llama2.c checkpoint"),  # the magic of its later formats
        (lambda whole: whole[:-4], "damaged, or no llama2.c checkpoint: .* bytes, and its header asks for"),
        (lambda whole: whole + b"\0\0\0\0", "damaged"),
        (lambda whole: header(vocabulary=-30) + whole[28:], "its output layer is not its embedding"),
        (lambda whole: header(heads=0) + whole[28:], "not a llama2.c checkpoint"),
        (lambda whole: header(kv_heads=3) + whole[28:], "not a llama2.c checkpoint"),
        (lambda whole: header(depth=2**31 - 1, vocabulary=2**31 - 1) + whole[28:], "damaged"),
        (lambda whole: whole[:28] + np.float32("nan").tobytes() + whole[32:], "not all of its numbers are finite"),
    ],
)
def test_damaged_and_other_files(content: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(content(file_of(tiny())))  # type: ignore[operator]
    with pytest.raises(UserError, match=said) as raised:
        read_llama2c(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_what_does_not_fit_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights" / "tiny.bin"
    path.parent.mkdir()
    path.write_bytes(file_of(tiny()))
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path))
    assert Llama2c(30, 16, 30, "tiny.bin")(tokens()).shape == (6, 12, 30)
    with pytest.raises(UserError, match="vocabulary is 31; allowed is 30"):
        Llama2c(31, 16, 31, "tiny.bin")
    with pytest.raises(UserError, match="length is 17; allowed is up to 16"):
        Llama2c(30, 17, 30, "tiny.bin")
    with pytest.raises(UserError, match="is a folder"):
        Llama2c(30, 16, 30, str(tmp_path))
    with pytest.raises(UserError, match=f"^checkpoint=other.bin: .*{tmp_path}/weights/other.bin"):
        Llama2c(30, 16, 30, "other.bin")


# The published model


def test_published_stories_are_english() -> None:
    published()
    model, tokenizer = Llama2c(512, 512, 512, WEIGHTS).eval(), Llama2cTokenizer("stories260K/tok512.bin")
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032
    story = torch.tensor([tokenizer.encode(STORY)])
    told = [tokenizer.encode("")]
    with torch.no_grad():
        perplexity = F.cross_entropy(model(story)[0, :-1], story[0, 1:]).exp()
        while len(told[0]) < 60:
            told[0].append(int(model(torch.tensor(told))[0, -1].argmax()))
    assert perplexity < 4
    # The beginning of what the model's authors published for it.
    assert tokenizer.decode(told[0]).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw"
    )


def test_published_tables_are_ours() -> None:
    published()
    config, tensors = read_llama2c(Path(os.environ["FEDSHARE_DATA"]) / "weights" / WEIGHTS)
    model = Llama2c(512, 64, 512, WEIGHTS)
    assert config.length == 512
    torch.testing.assert_close(model.cos, tensors["cos"], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.sin, tensors["sin"], rtol=0, atol=1e-6)


def test_a_round_of_shakespeare(tmp_path: Path) -> None:
    published()
    if not (Path(os.environ["FEDSHARE_DATA"]) / TINY_SHAKESPEARE.folder / "input.txt").is_file():
        pytest.skip(f"no {TINY_SHAKESPEARE.folder} in FEDSHARE_DATA")
    few = ["rounds=1", "clients_per_round=2", "client.epochs=1", "evaluate_every=0", "workers=0"]
    assert fedshare("run", f"folder={tmp_path}/run", "data=shakespeare_tokens", "peft.head=null", *few) == 0
    (row,) = RunFolder(tmp_path / "run").rows()
    assert 0 < row["train_loss"] < 4.2  # of 512 tokens, of which it has learnt another author's
