"""Every model: sizes, shapes, gradients, sameness, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedshare import seeds
from fedshare.errors import UserError
from fedshare.models import CNN, MLP, Logistic, ResNet, TextCNN, TextTransformer, ViT
from optional import extra

DIGITS = {"shape": [1, 8, 8], "classes": 10}
TEXT = {"vocabulary": 20, "length": 12, "classes": 3}

Make = Callable[[], nn.Module]

IMAGE_MODELS: dict[str, Make] = {
    "logistic": lambda: Logistic(**DIGITS),
    "mlp": lambda: MLP(**DIGITS, hidden=[32, 16]),
    "cnn": lambda: CNN(**DIGITS, widths=[4, 8], hidden=32),
    "resnet-a": lambda: ResNet(**DIGITS, depth=8, widths=[4, 8, 16], groups=2),
    "resnet-b": lambda: ResNet(**DIGITS, depth=8, widths=[4, 8, 16], groups=2, shortcut="B"),
    "resnet-batch": lambda: ResNet(**DIGITS, depth=8, widths=[4, 8, 16], groups=2, norm="batch"),
    "vit": lambda: ViT(**DIGITS, dim=32, depth=2),
}
CLASSIFIERS: dict[str, Make] = {
    "text_transformer": lambda: TextTransformer(**TEXT, dim=32, depth=2),
    "text_cnn": lambda: TextCNN(20, 3, dim=16, filters=8),
}
TEXT_MODELS = CLASSIFIERS | {
    "language_model": lambda: TextTransformer(**TEXT, dim=32, depth=2, dropout=0.0, causal=True)
}
MODELS = IMAGE_MODELS | TEXT_MODELS


def build(name: str) -> nn.Module:
    with seeds.scope(1, "model", name):
        return MODELS[name]()


def batch(name: str, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = seeds.generator(1, "batch", name)
    if name in IMAGE_MODELS:
        return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator)
    tokens = torch.randint(1, 20, (size, 12), generator=generator)
    if name == "language_model":
        return tokens, torch.randint(3, (size, 12), generator=generator)
    return tokens, torch.randint(3, (size,), generator=generator)


def loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def residual_count(channels: int, classes: int, blocks: int, widths: list[int], project: bool) -> int:
    total, before = 9 * channels * widths[0] + 2 * widths[0], widths[0]
    for width in widths:
        total += 9 * before * width + (2 * blocks - 1) * 9 * width**2 + 2 * blocks * 2 * width
        if project and before != width:
            total += before * width + 2 * width
        before = width
    return total + (before + 1) * classes


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (lambda: Logistic([60], 10), 610),
        (lambda: MLP([1, 28, 28], 10), 199_210),
        (lambda: MLP([784], 10, hidden=[32]), 25_450),
        (lambda: CNN([1, 28, 28], 10), 1_663_370),
        (lambda: CNN([1, 28, 28], 62, hidden=2048), 6_603_710),
        (lambda: CNN([1, 28, 28], 10, padding="valid"), 582_026),
        (lambda: CNN([3, 32, 32], 10, padding="valid"), 878_538),
        (lambda: ResNet([3, 32, 32], 10, norm="batch"), 269_722),
        (lambda: ResNet([3, 32, 32], 10, norm="batch"), residual_count(3, 10, 3, [16, 32, 64], False)),
        (lambda: ResNet([3, 32, 32], 10, norm="group"), 269_722),
        (lambda: ResNet([3, 32, 32], 10, shortcut="B"), residual_count(3, 10, 3, [16, 32, 64], True)),
        (lambda: ResNet([1, 28, 28], 7, depth=8), residual_count(1, 7, 1, [16, 32, 64], False)),
        (lambda: ResNet([3, 8, 8], 5, 10, [4, 8, 8, 16], groups=4), residual_count(3, 5, 1, [4, 8, 8, 16], False)),
        (lambda: TextCNN(1000, 2), 1000 * 300 + 128 * 300 * (3 + 4 + 5) + 3 * 128 + 2 * (3 * 128 + 1)),
        (lambda: TextCNN(1000, 2, widths=[3, 3, 3]), 1000 * 300 + 3 * (128 * 300 * 3 + 128) + 2 * (3 * 128 + 1)),
    ],
)
def test_parameters_counted(model: Make, parameters: int) -> None:
    assert count(model()) == parameters


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_layers_are_those_of_the_paper(name: str) -> None:
    """Layer by layer as published, so with ReLU before pooling: equal logits and equal gradients."""
    model = build(name)
    x, y = batch(name)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    paper = x if name == "cnn" else x.flatten(1)
    for layer in layers:
        paper = layer(paper if isinstance(layer, nn.Conv2d) else paper.flatten(1))
        paper = paper if layer is model.head else F.relu(paper)
        paper = F.max_pool2d(paper, 2) if isinstance(layer, nn.Conv2d) else paper
    torch.testing.assert_close(model(x), paper)
    ours, theirs = (torch.autograd.grad(loss(logits, y), list(model.parameters())) for logits in (model(x), paper))
    torch.testing.assert_close(ours, theirs)


def test_vit_base_has_the_published_size() -> None:
    with torch.device("meta"):
        assert count(ViT([3, 224, 224], 100, patch=16, dim=768, depth=12, heads=12)) == 85_875_556


def test_vit_is_timm_s() -> None:
    timm = extra("timm")
    ours = ViT([3, 32, 32], 10, patch=8, dim=48, depth=2, heads=3).eval()
    theirs = timm.models.VisionTransformer(32, 8, num_classes=10, embed_dim=48, depth=2, num_heads=3).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=seeds.generator(1, "images"))
    torch.testing.assert_close(ours(x), theirs(x))


def test_vit_parameters_are_named_as_peft_expects() -> None:
    names = dict(build("vit").named_parameters())
    kinds = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = ["patch_embed.proj", *[f"blocks.{n}.{kind}" for n in range(2) for kind in kinds], "norm", "head"]
    expected = {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    assert set(names) == expected | {"cls_token", "pos_embed"}


@pytest.mark.parametrize("shape", [[1, 8, 8], [1, 28, 28], [3, 32, 32], [3, 24, 16]])
@pytest.mark.parametrize(
    "make",
    [
        Logistic,
        MLP,
        CNN,
        lambda shape, classes: ResNet(shape, classes, depth=8),
        lambda shape, classes: ViT(shape, classes, dim=16, depth=1),
    ],
)
def test_images_of_any_size_give_one_logit_a_class(
    make: Callable[[list[int], int], nn.Module], shape: list[int]
) -> None:
    assert make(shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("length", [1, 2, 12])
def test_texts_of_any_length(length: int) -> None:
    tokens = torch.arange(2 * length).view(2, length) % 20
    assert build("text_transformer")(tokens).shape == (2, 3)
    assert build("text_cnn")(tokens).shape == (2, 3)
    assert build("language_model")(tokens).shape == (2, length, 3)


@pytest.mark.parametrize("name", MODELS)
def test_one_head_one_dtype_no_buffers(name: str) -> None:
    model = build(name)
    assert isinstance(model.head, nn.Linear)
    assert [n for n, _ in model.named_parameters()][-2:] == ["head.weight", "head.bias"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert any(True for _ in model.buffers()) == (name == "resnet-batch")
    assert set(model.state_dict()) == {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = build(name)
    x, y = batch(name)
    loss(model(x), y).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_the_initial_model_and_nothing_else_does(name: str) -> None:
    one = build(name).state_dict()
    torch.rand(3)
    again = build(name).state_dict()
    with seeds.scope(2, "model", name):
        other = MODELS[name]().state_dict()
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", MODELS)
def test_learns_a_tiny_batch_by_heart(name: str) -> None:
    model = build(name)
    x, y = batch(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    learnt = False
    with seeds.scope(1, "dropout"):
        for step in range(1, 251):
            optimizer.zero_grad()
            loss(model.train()(x), y).backward()
            optimizer.step()
            if step % 25 == 0 and (learnt := torch.equal(model.eval()(x).argmax(-1), y)):
                break
    assert learnt


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"resnet-batch"}))
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_clients_can_be_batched(name: str) -> None:
    model = build(name).eval()
    x, y = batch(name)
    params = {n: torch.stack([p.detach(), p.detach() * 0.9, p.detach() * 1.1]) for n, p in model.named_parameters()}

    def client_loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, params, (x,)), y)

    gradients = vmap(grad(client_loss))(params, x.unflatten(0, (3, 2)), y.unflatten(0, (3, 2)))
    for client in range(3):
        rows = slice(2 * client, 2 * client + 2)
        alone = grad(client_loss)({n: p[client] for n, p in params.items()}, x[rows], y[rows])
        for n in alone:
            torch.testing.assert_close(gradients[n][client], alone[n], rtol=1e-3, atol=1e-5, msg=n)


@pytest.mark.parametrize("name", MODELS)
def test_torch_compile_takes_a_model_whole(name: str) -> None:
    model = build(name).eval()
    x, _ = batch(name)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_examples_of_a_batch_do_not_meet(name: str) -> None:
    model = build(name).eval()
    x, _ = batch(name)
    torch.testing.assert_close(model(x)[:2], model(x[:2]), rtol=1e-4, atol=1e-5)


def test_language_model_sees_no_later_token() -> None:
    model = build("language_model").eval()
    tokens, _ = batch("language_model")
    changed = tokens.clone()
    changed[:, 5] = changed[:, 5] % 19 + 1
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax((0, 2)).min() > 1e-4


def test_language_model_takes_padding_for_a_token_but_never_looks_ahead_at_it() -> None:
    model = build("language_model").eval()
    tokens, _ = batch("language_model")
    torch.testing.assert_close(model(F.pad(tokens[:, :7], (0, 5)))[:, :7], model(tokens[:, :7]))


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_padding_changes_no_class(name: str, length: int) -> None:
    model = build(name).eval()
    with torch.no_grad():
        model.embed.weight[0] += 5  # as noise or a perturbation of all parameters might
    tokens, _ = batch(name)
    tokens = tokens[:, :length]
    torch.testing.assert_close(model(F.pad(tokens, (0, 12 - length))), model(tokens))
    mixed = tokens.clone()
    mixed[0, 1:] = 0
    torch.testing.assert_close(model(mixed)[:1], model(tokens[:1, :1]))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_an_empty_text_has_a_class_too(name: str) -> None:
    model = build(name)
    logits = model(torch.zeros(2, 12, dtype=torch.int64))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_text_cnn_by_hand() -> None:
    model = TextCNN(4, 2, dim=1, filters=1, widths=[2]).eval()
    with torch.no_grad():
        model.embed.weight[:] = torch.tensor([[9.0], [1.0], [2.0], [3.0]])
        model.convs[0].weight[:] = torch.tensor([[[10.0, 1.0]]])
        model.convs[0].bias[:] = 100.0
        model.head.weight[:] = torch.tensor([[1.0], [-1.0]])
        model.head.bias[:] = 0.0
    # Windows of 1, 3 and the text's ends: 0,1 -> 1; 1,3 -> 13; 3,0 -> 30.
    assert model(torch.tensor([[1, 3, 0, 0]])).tolist() == [[130.0, -130.0]]


def test_residual_block_without_projection_starts_from_its_input() -> None:
    model = ResNet([2, 4, 4], 3, depth=6, widths=[2, 4], groups=1)
    last = model.blocks[1]
    nn.init.zeros_(last.norm2.weight)
    x = torch.rand(1, 2, 4, 4, generator=seeds.generator(1, "image"))
    nothing = torch.zeros(1, 1, 2, 2)
    assert torch.equal(last(x), torch.cat([nothing, x[:, :, ::2, ::2], nothing], 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logistic([], 10), r"Logistic: shape is \[\]; allowed is a list of one or more whole numbers"),
        (lambda: Logistic([8], 0), "Logistic: classes is 0; allowed is a whole number of at least 1"),
        (lambda: MLP([8], 10, hidden=[]), r"MLP: hidden is \[\]; allowed is a list of one or more"),
        (lambda: MLP([8], 10, hidden=[20, 0]), r"MLP: hidden is \[20, 0\]"),
        (lambda: MLP([8], 10, hidden="200"), "MLP: hidden is '200'; allowed is a whole number"),
        (lambda: CNN([28, 28], 10), r"CNN: shape is \[28, 28\]; allowed is \[channels, height, width\]"),
        (lambda: CNN([1, 3, 3], 10), r"CNN: shape \[1, 3, 3\] is too small for 2 layers with padding 'same'"),
        (lambda: CNN([1, 8, 8], 10, padding="valid"), "too small for 2 layers with padding 'valid'"),
        (lambda: CNN([1, 8, 8], 10, padding="full"), "CNN: padding is 'full'; allowed is 'same' or 'valid'"),
        (lambda: ResNet([8], 10), r"ResNet: shape is \[8\]"),
        (lambda: ResNet([1, 8, 8], 10, depth=0), "ResNet: depth is 0"),
        (lambda: ResNet([1, 8, 8], 10, depth=2), r"ResNet: depth is 2; allowed with 3 widths is 6n \+ 2"),
        (lambda: ResNet([1, 8, 8], 10, depth=18), r"ResNet: depth is 18; allowed with 3 widths is 6n \+ 2"),
        (lambda: ResNet([1, 8, 8], 10, norm="layer"), "ResNet: norm is 'layer'; allowed is 'group' or 'batch'"),
        (lambda: ResNet([1, 8, 8], 10, groups=3), "ResNet: 3 groups do not divide"),
        (lambda: ResNet([1, 8, 8], 10, widths=[16, 8, 16]), "ResNet: widths are .* no width less than the one before"),
        (lambda: ResNet([1, 8, 8], 10, shortcut="C"), "ResNet: shortcut is 'C'; allowed is 'A' or 'B'"),
        (
            lambda: ViT([1, 28, 28], 10, patch=5),
            "ViT: patch is 5; allowed is a divisor of the image's sides, 28 and 28",
        ),
        (lambda: ViT([1, 8, 8], 10, depth=0), "ViT: depth is 0"),
        (lambda: ViT([1, 8, 8], 10, dim=10, heads=4), "ViT: dim is 10; allowed with 4 heads is a multiple of 4"),
        (lambda: ViT([8, 8], 10), r"ViT: shape is \[8, 8\]; allowed is \[channels, height, width\]"),
        (lambda: TextTransformer(20, 0, 2), "TextTransformer: length is 0"),
        (lambda: TextTransformer(20, 8, 2, depth=0), "TextTransformer: depth is 0"),
        (lambda: TextTransformer(20, 8, 2, dim=9), "TextTransformer: dim is 9; allowed with 4 heads"),
        (lambda: TextTransformer(20, 8, 2, dropout=1.0), "TextTransformer: dropout is 1.0; allowed is at least 0"),
        (
            lambda: TextTransformer(20, 8, 2)(torch.ones(1, 9, dtype=torch.int64)),
            "a text has 9 tokens; .* up to length, 8",
        ),
        (lambda: TextCNN(20, 2, widths=[]), r"TextCNN: widths is \[\]"),
        (lambda: TextCNN(20, 2, dropout=-0.5), "TextCNN: dropout is -0.5"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make: Make, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
