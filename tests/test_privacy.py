"""Differential privacy of a client's examples: what is computed, what it spends, and who can undo it."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import world
from fedshare import peft, seeds
from fedshare.client import Client, Training
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.models import TextTransformer, ViT
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.rounds import Round, Schedule, run_server
from fedshare.rounds.rows import averages as _averages
from fedshare.simulation import Population, Simulation
from fedshare.simulation.trial import attempt
from fedshare.tasks import Classification
from fedshare.tensors import Tensors
from fedshare.training.fit import Fit
from fedshare.training.private.budget import Budget, PrivacyRecord
from fedshare.training.private.clipping import Clipping
from fedshare.training.private.noise import Stream
from fedshare.training.private.poisson import Poisson
from fedshare.training.private.privacy import Privacy, noise_for
from fedshare.training.scratch import Scratch
from fedshare.transport.flower.memory import Record
from optional import extra, needs

needs_opacus = needs("opacus")
SCHEDULE = Schedule(rounds=2, seed=0, max_examples=100)
CUT = Privacy(noise_multiplier=0.0, max_grad_norm=1e6, delta=1e-3)


def noisy(**changes: Any) -> Privacy:
    return Privacy(**({"noise_multiplier": 1.0, "max_grad_norm": 0.5, "delta": 1e-3} | changes))


class Net(nn.Module):
    """world.Net without what mixes examples or changes buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(world.FEATURES, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(8, world.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.last(self.dropout(torch.relu(self.norm(self.first(x)))))
        return hidden


def training(privacy: Privacy | None, **changes: Any) -> Training:
    return Training(**({"optimizer": world.sgd, "batch_size": 4, "sampling": "poisson", "privacy": privacy} | changes))


def population(
    privacy: Privacy | None, name: str = "fedavg", module: Callable[[], nn.Module] = Net, **changes: Any
) -> Population:
    with seeds.scope(0, "model"):
        scratch = Scratch(module())
    return Population(world.strategy(name), scratch, training(privacy, **changes), world.shares(), 0)


def run(made: Population, schedule: Schedule = SCHEDULE) -> tuple[list[Round], Simulation]:
    network = Simulation(lambda: made)
    state = made.strategy.init(made.scratch.initial, made.clients)
    return list(run_server(made.strategy, network, state, schedule)), network


TASK = Classification()


def clipping(model: nn.Module, trained: dict[str, nn.Parameter], cut: float, chunk: int | None = None) -> Clipping:
    privacy = Privacy(noise_multiplier=0.0, max_grad_norm=cut, delta=0.1, chunk=chunk)
    return Clipping(model, TASK, trained, training(privacy))


def fitted(made: Population, id: int = 0) -> Tensors:
    """What a client's training gives."""
    client = made.client(id, {})
    client.load(client.initial)
    with seeds.scope("test"):  # dropout
        client.fit(1)
    return client.params()


def drawn(made: Population, record: PrivacyRecord | None = None, *names: str) -> Poisson:
    """The steps of client 0's first fit of round 1."""
    asked, budget, examples = Fit(round=1, names=names), Budget(0, made.seed, record), made.client(0, {}).train_examples
    key = budget.key(asked, made.scratch, examples)
    return budget.steps(key, asked, made.scratch, made.task, made.training, examples)


def same(a: Tensors, b: Tensors) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- the gradient


@pytest.mark.parametrize("flat", [True, False])
def test_without_noise_and_cut_it_is_the_same_training_to_the_bit(flat: bool) -> None:
    """Where there is no noise nothing is counted, so memories are the same, too, and with them the digests."""
    plain, _ = run(population(None, flat=flat))
    uncut, _ = run(population(Privacy(noise_multiplier=0, max_grad_norm=math.inf, delta=1e-3), flat=flat))
    assert [done.link for done in uncut] == [done.link for done in plain]
    assert "train_loss" in plain[-1].row
    assert not {"train_loss", "max_epsilon"} & uncut[-1].row.keys()
    if not flat:
        flatly, _ = run(population(None))
        assert [done.link for done in flatly] == [done.link for done in plain]


def test_a_cut_that_is_never_reached_changes_nothing_but_rounding() -> None:
    def without_dropout() -> nn.Module:
        net = Net()
        net.dropout = nn.Identity()
        return net

    plain, _ = run(population(None, module=without_dropout))
    cut, _ = run(population(CUT, module=without_dropout))
    for name, value in plain[-1].state["params"].items():
        torch.testing.assert_close(cut[-1].state["params"][name], value, rtol=0, atol=1e-6)


def moved(model: nn.Module, names: list[str]) -> nn.Module:
    """Away from zeros, where gradients vanish."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
        if name in names:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def vit(method: peft.Method) -> tuple[nn.Module, list[str]]:
    model, parts = method.tune(ViT([1, 8, 8], 5, patch=2, dim=32, depth=2, heads=2))
    names = [name for name, _ in model.named_parameters() if parts.roles[name] is not parts.roles["cls_token"]]
    return model, names or [name for name, _ in model.named_parameters()]


METHODS: dict[str, Callable[[], peft.Method]] = {
    "full": peft.Full,
    "head": peft.Head,
    "bias": peft.Bias,
    "prompt": lambda: peft.Prompt(count=3),
    "shallow prompt": lambda: peft.Prompt(count=3, deep=False),
    "adapter": peft.Adapter,
    "one adapter for all": lambda: peft.Adapter(shared=True),
    "compacter": peft.Compacter,
    "shards": lambda: peft.Shards(rank=3),
}


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_a_vit_are_those_of_example_after_example(name: str) -> None:
    torch.manual_seed(0)
    model, names = vit(METHODS[name]())
    check_against_a_loop(moved(model, names), names, torch.randn(7, 1, 8, 8), torch.randint(5, (7,)))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"lora_dropout": 0.1}])
def test_gradients_of_lora_are_those_of_example_after_example(options: dict[str, Any]) -> None:
    library = extra("peft")
    from fedshare.peft.library import Library

    torch.manual_seed(0)
    config = library.LoraConfig(r=4, target_modules=["qkv", "proj"], exclude_modules="patch_embed.*", **options)
    model, names = vit(Library(config=config))
    check_against_a_loop(moved(model, names), names, torch.randn(7, 1, 8, 8), torch.randint(5, (7,)))


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_a_text_model_are_those_of_example_after_example(causal: bool) -> None:
    torch.manual_seed(0)
    model = TextTransformer(20, 9, 20, dim=16, depth=2, heads=2, causal=causal)
    x = torch.randint(1, 20, (6, 9))
    x[2:, 5:] = 0
    y = torch.where(x == 0, -100, x).roll(-1, 1) if causal else torch.randint(20, (6,))
    if causal:
        y[0], y[:, -1] = -100, -100  # an example without a target; and ends
    names = [name for name, _ in model.named_parameters()]
    check_against_a_loop(moved(model, names), names, x, y)


def check_against_a_loop(model: nn.Module, names: list[str], x: Tensor, y: Tensor) -> None:
    """The sum of cut gradients, half of which are cut, against torch's own gradients one by one."""
    trained = {name: parameter for name, parameter in model.named_parameters() if name in names}
    ones = []
    for position in range(len(y)):
        logits, targets = model(x[position : position + 1]).flatten(0, -2), y[position : position + 1].flatten()
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum") / max(1, int((targets != -100).sum()))
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        ones.append([torch.zeros_like(p) if g is None else g for p, g in zip(trained.values(), gradients, strict=True)])
    norms = [float(torch.cat([g.flatten() for g in one]).norm()) for one in ones]
    cut = sorted(norms)[len(norms) // 2]
    factors = [min(1.0, cut / norm) if norm else 1.0 for norm in norms]
    assert min(factors) < 1
    expected = [sum(f * one[k] for f, one in zip(factors, ones, strict=True)) for k in range(len(trained))]
    for chunk in (None, 2):
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter)
        before = [parameter.detach().clone() for parameter in trained.values()]
        clipping(model, trained, cut, chunk).add(x, y)
        for parameter, value, old in zip(trained.values(), expected, before, strict=True):
            torch.testing.assert_close(parameter.grad, value, rtol=1e-4, atol=2e-6)
            assert torch.equal(parameter, old)
    assert {name: id(p) for name, p in trained.items()} == {n: id(p) for n, p in model.named_parameters() if n in names}


def test_dropout_is_drawn_for_each_example() -> None:
    """Equal examples, so equal gradients but for dropout: their sum's norm is below the sum of the norms."""
    torch.manual_seed(0)
    net = Net().train()
    trained = dict(net.named_parameters())
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    x = torch.randn(1, world.FEATURES).expand(16, -1)
    clipping(net, trained, 1e-3).add(x, torch.zeros(16, dtype=torch.int64))
    norm = torch.cat([parameter.grad.flatten() for parameter in trained.values()]).norm()  # type: ignore[union-attr]
    assert 0.1 * 16e-3 < float(norm) < 0.999 * 16e-3


@settings(max_examples=40)
@given(
    st.integers(1, 9), st.floats(1e-3, 1e3), st.floats(1e-2, 1e4), st.integers(0, 10**6), st.sampled_from([None, 1, 2])
)
def test_one_example_moves_the_sum_by_no_more_than_the_norm(
    count: int, cut: float, size: float, seed: int, chunk: int | None
) -> None:
    random = seeds.generator("sensitivity", seed)
    with seeds.scope("sensitivity", seed):
        net = Net().eval()
    x = size * torch.randn(count, world.FEATURES, generator=random)
    y = torch.randint(world.CLASSES, (count,), generator=random)
    trained = dict(net.named_parameters())

    def total(rows: slice) -> Tensor:
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter)
        clipping(net, trained, cut, chunk).add(x[rows], y[rows])
        return torch.cat([p.grad.double().flatten() for p in trained.values()])  # type: ignore[union-attr]

    assert float((total(slice(count)) - total(slice(count - 1))).norm()) <= cut * (1 + 1e-5 * count)


def test_an_example_whose_gradient_is_not_finite_counts_for_nothing() -> None:
    net = Net().eval()
    trained = dict(net.named_parameters())
    x, y = torch.randn(3, world.FEATURES), torch.zeros(3, dtype=torch.int64)
    sums = []
    for bad in (math.nan, math.inf, None):
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter)
        some = x.clone()
        some[1] = math.nan if bad is None else bad
        rows = [0, 2] if bad is None else [0, 1, 2]
        clipping(net, trained, 0.1).add(some[rows], y[rows])
        sums.append(torch.cat([parameter.grad.flatten() for parameter in trained.values()]))  # type: ignore[union-attr]
    assert all(part.isfinite().all() for part in sums)
    torch.testing.assert_close(sums[0], sums[2])
    torch.testing.assert_close(sums[1], sums[2])


def test_each_example_has_the_mean_over_its_own_targets() -> None:
    logits = torch.randn(3, 4, 5)
    targets = torch.tensor([[1, 2, 3, 4], [1, -100, -100, -100], [-100] * 4])
    first = nn.functional.cross_entropy(logits[0], targets[0])
    second = nn.functional.cross_entropy(logits[1, :1], targets[1, :1])
    torch.testing.assert_close(TASK.alone(logits, targets), torch.stack([first, second, torch.zeros(())]))
    torch.testing.assert_close(TASK.alone(logits[:, 0], targets[:, 0])[1], second)


# ---- who is in a step


def poisson(made: Privacy | None, count: int, batch_size: int | None, epochs: int, features: int = 3) -> Poisson:
    """On a linear model without bias, whose gradients are known."""
    with seeds.scope("poisson"):
        net = nn.Linear(features, 2, bias=False)
    net.weight.grad = torch.zeros_like(net.weight)
    x = torch.randn(count, features, generator=seeds.generator("x"))
    examples = Examples(x, torch.arange(count) % 2)
    streams = (Stream("who"), Stream("noise"))
    how = Training(optimizer=world.sgd, epochs=epochs, batch_size=batch_size, sampling="poisson", privacy=made)
    return Poisson(net, TASK, dict(net.named_parameters()), examples, how, None, *streams)


def test_every_example_is_in_a_step_as_often_as_it_should_be() -> None:
    steps = poisson(None, count=50, batch_size=10, epochs=400)
    assert (steps.rate, steps.steps) == (0.2, 2000)
    place = {float(value): position for position, value in enumerate(steps._examples.x[:, 0])}
    there = torch.zeros(steps.steps, 50)
    for step, (inputs, _) in enumerate(steps.batches()):
        there[step, [place[float(value)] for value in inputs[:, 0]]] = 1
    deviation = math.sqrt(0.2 * 0.8 / steps.steps)
    assert float((there.mean(0) - 0.2).abs().max()) < 4.5 * deviation
    sizes = there.sum(1)
    assert sizes.mean() == pytest.approx(10, abs=4 * math.sqrt(8 / steps.steps))
    assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.15)  # as of independent examples
    together = torch.corrcoef(there.T) - torch.eye(50)
    assert float(together.abs().max()) < 5 / math.sqrt(steps.steps)
    assert float(torch.corrcoef(torch.stack([there[:-1].flatten(), there[1:].flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("count", "batch_size", "rate", "steps"), [(7, None, 1.0, 3), (7, 9, 1.0, 3), (7, 3, 3 / 7, 9), (0, 3, 1.0, 0)]
)
def test_rate_and_number_of_steps(count: int, batch_size: int | None, rate: float, steps: int) -> None:
    made = poisson(None, count, batch_size, epochs=3)
    assert (made.rate, made.steps) == (rate, steps)
    sizes = [len(targets) for _, targets in made.batches()]
    assert len(sizes) == steps
    assert rate < 1 or set(sizes) <= {count}


@pytest.mark.parametrize("made", [None, CUT], ids=["plain", "cut"])
@pytest.mark.parametrize("size", [0, 1, 3, 5])
def test_the_divisor_is_the_expected_size(made: Privacy | None, size: int) -> None:
    steps = poisson(made, count=12, batch_size=4, epochs=1)
    inputs, targets = steps._examples.batch(slice(0, size))
    steps.backward((inputs, targets))
    net = steps._module
    assert isinstance(net, nn.Linear)
    found = net.weight.grad
    assert found is not None
    probabilities = (inputs @ net.weight.T).softmax(1) - torch.eye(2)[targets]
    torch.testing.assert_close(found, (probabilities.T @ inputs / 4).detach(), rtol=1e-5, atol=1e-7)


def test_a_step_that_nobody_is_in_is_taken() -> None:
    """With weight decay alone to see it by: 0.9 in each step."""

    def decay(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-9, weight_decay=1e8)  # type: ignore[arg-type]

    made = population(None, optimizer=decay, batch_size=1, epochs=2)
    steps = 2 * len(made.shares[0].train)
    assert any(not len(targets) for _, targets in drawn(made).batches())
    before, after = made.scratch.initial["first.weight"], fitted(made)["first.weight"]
    torch.testing.assert_close(after, before * 0.9**steps, rtol=1e-4, atol=1e-6)


def test_fit_moves_only_the_names_given() -> None:
    client = population(CUT).client(0, {})
    client.load(client.initial)
    client.fit(1, names=["last.weight", "first.bias"])
    moved = {name for name, value in client.params().items() if not torch.equal(value, client.initial[name])}
    assert moved == {"last.weight", "first.bias"}


@pytest.mark.parametrize("made", [None, CUT], ids=["plain", "cut"])
@pytest.mark.parametrize("flat", [True, False])
def test_names_of_no_parameter_are_refused_and_frozen_ones_stay(flat: bool, made: Privacy | None) -> None:
    def module() -> nn.Module:
        net = Net()
        net.first.requires_grad_(False)
        return net

    client = population(made, module=module, flat=flat).client(0, {})
    client.load(client.initial)
    with pytest.raises(KeyError, match=r"the model has no parameter first\.wight, nothing"):
        client.fit(1, names=["last.weight", "nothing", "first.wight"])
    every = list(client._scratch.shapes)
    before = client.params(every)
    client.fit(1, names=["last.weight", "first.weight"])
    after = client.params(every)
    assert {name for name in every if not torch.equal(after[name], before[name])} == {"last.weight"}


# ---- noise


def test_a_stream_is_named_by_all_of_its_key_and_lies_in_the_open_interval() -> None:
    def first(*key: seeds.Key) -> float:
        return float(Stream(*key).uniform(1))

    assert first(0, "golden") == 0.7510198259370443
    keys = [(0, "a", 1), (0, "a", 2), (2**32, "a", 1), (0, "b", 1), ("0", "a", 1), (0, "a")]
    assert len({first(*key) for key in keys}) == len(keys)
    stream = Stream(0)
    many = torch.cat([stream.uniform(100_000), stream.uniform(3)])
    assert len(set(many.tolist())) == len(many)
    assert 0 < float(many.min()) < 1e-4 < 1 - 1e-4 < float(many.max()) < 1
    assert float(many.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * len(many)))
    assert len(stream.uniform(0)) == 0


def test_a_stream_goes_on_beyond_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedshare.training.private.noise._BLOCK", 4)
    long, short = Stream(0).uniform(10), Stream(0)
    assert torch.equal(long, torch.cat([short.uniform(4), short.uniform(4), short.uniform(2)]))
    assert Stream(0).normal(10).isfinite().all()


@needs_opacus
def test_noise_has_the_deviation_that_is_counted() -> None:
    """In a step without examples, the gradient is the noise; in one with some, it is added to what would be there."""
    steps = poisson(noisy(noise_multiplier=3.0, max_grad_norm=0.5), count=40, batch_size=8, epochs=1, features=20_000)
    net = steps._module
    assert isinstance(net, nn.Linear)
    deviation, draws = 3.0 * 0.5 / 8, []
    for size in (0, 0, 5):
        net.weight.grad = torch.zeros_like(net.weight)
        steps.backward(steps._examples.batch(slice(0, size)))
        draws.append(net.weight.grad.flatten().double())
    without = poisson(noisy(noise_multiplier=0.0), 40, 8, 1, features=20_000)
    without.backward(without._examples.batch(slice(0, 5)))
    draws[2] -= without._module.weight.grad.flatten()  # type: ignore[union-attr, operator]
    for draw in draws:
        count = len(draw)
        assert float(draw.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * count))
        assert abs(float(draw.mean())) < 4 * deviation / math.sqrt(count)
        inside = [(draw.abs() < k * deviation).double().mean() for k in (1, 2, 3)]
        assert [float(share) for share in inside] == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.01)
    together = torch.corrcoef(torch.stack(draws)) - torch.eye(3, dtype=torch.float64)
    assert float(together.abs().max()) < 4.5 / math.sqrt(len(draws[0]))


@needs_opacus
def test_a_simulation_repeats_and_no_noise_is_drawn_twice() -> None:
    made = population(noisy())
    assert same(fitted(made), fitted(made))
    client = made.client(0, {})
    found = []
    for round in (1, 1, 2):  # a strategy may train twice in a round
        client.load(client.initial)
        with seeds.scope("test"):
            client.fit(round)
        found.append(client.params())
    assert not same(found[0], found[1])
    assert not same(found[0], found[2])
    assert not same(fitted(made, 0), fitted(made, 1))
    flat = fitted(population(noisy(), flat=True))
    assert same(flat, fitted(population(noisy(), flat=False)))


@needs_opacus
def test_noise_follows_secret_terms_model_and_examples(tmp_path: Path) -> None:
    made = population(noisy(), batch_size=None)  # all examples in all steps
    (tmp_path / "other").mkdir()
    (tmp_path / "secret").write_text("5" * 64)
    (tmp_path / "other" / "secret").write_text("6" * 64)
    secret = Record(tmp_path)

    def noise(record: Record | None, start: Tensors | None = None, population: Population = made) -> Tensor:
        population.scratch.load(population.scratch.initial if start is None else start)
        return drawn(population, record, "first.bias")._noise.normal(4)

    other = {**made.scratch.initial, "last.bias": torch.full((world.CLASSES,), 1e-7)}
    fewer = Population(made.strategy, made.scratch, made.training, [world.shares()[1]], 0)
    assert torch.equal(noise(secret), noise(secret))
    found = [noise(None), noise(secret), noise(Record(tmp_path / "other")), noise(Record(tmp_path, b"terms"))]
    found += [noise(secret, other), noise(secret, population=fewer)]
    assert len({float(draw[0]) for draw in found}) == len(found)
    assert torch.equal(noise(None, other), noise(None)), "where nothing is secret, the key is what is known of the step"


# ---- what is spent


def gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """Exact: `steps` Gaussian mechanisms are one of noise / sqrt(steps) (Balle & Wang 2018, theorem 8)."""
    inverse = math.sqrt(steps) / noise

    def exceeds(epsilon: float) -> bool:
        def phi(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        a, b = inverse / 2 - epsilon / inverse, -inverse / 2 - epsilon / inverse
        return phi(a) - math.exp(epsilon) * phi(b) > delta

    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high


def sampled_epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """By integer orders (Mironov, Talwar & Zhang 2019, section 3.3), then Canonne et al. 2020, proposition 12."""

    def divergence(order: int) -> float:
        terms = [
            math.lgamma(order + 1)
            - math.lgamma(k + 1)
            - math.lgamma(order - k + 1)
            + (order - k) * math.log1p(-rate)
            + k * math.log(rate)
            + (k * k - k) / (2 * noise**2)
            for k in range(order + 1)
        ]
        most = max(terms)
        return (most + math.log(sum(math.exp(term - most) for term in terms))) / (order - 1)

    return min(
        steps * divergence(order) + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order in range(2, 64)
    )


@needs_opacus
@pytest.mark.parametrize(
    ("noise", "steps", "delta"), [(2.0, 10, 1e-5), (5.0, 100, 1e-3), (10.0, 20, 1e-6), (1.0, 1, 1e-5)]
)
def test_epsilon_of_full_batches_is_that_of_the_gaussian_mechanism(noise: float, steps: int, delta: float) -> None:
    exact = gaussian_epsilon(noise, steps, delta)
    rdp, prv = (
        noisy(noise_multiplier=noise, delta=delta, accountant=kind).epsilon(steps, 1.0) for kind in ("rdp", "prv")
    )
    assert exact <= prv == pytest.approx(exact, rel=0.01, abs=0.01)  # 0.01 is what the accountant allows itself
    assert exact <= rdp < 1.35 * exact


@needs_opacus
@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(1.0, 0.1, 100, 1e-3), (0.6, 0.05, 40, 1e-5), (2.0, 0.3, 500, 1e-4), (4.0, 0.01, 3000, 1e-6)],
)
@pytest.mark.filterwarnings("ignore:Optimal order")
def test_epsilon_of_sampled_batches_is_that_of_the_formula(noise: float, rate: float, steps: int, delta: float) -> None:
    from opacus.accountants import RDPAccountant

    own = sampled_epsilon(noise, rate, steps, delta)
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    assert accountant.get_epsilon(delta, alphas=range(2, 64)) == pytest.approx(own, rel=1e-6)
    rdp, prv = (
        noisy(noise_multiplier=noise, delta=delta, accountant=kind).epsilon(steps, rate) for kind in ("rdp", "prv")
    )
    assert accountant.get_epsilon(delta) == pytest.approx(rdp, rel=1e-9)
    assert 0.8 * own < rdp <= own  # it has orders between, and some below 2
    assert 0.6 * rdp < prv <= rdp


@needs_opacus
def test_epsilon_at_the_ends() -> None:
    assert noisy().epsilon(0, 0.1) == 0
    assert noisy(noise_multiplier=0.0).epsilon(10, 0.1) == math.inf
    weak = {kind: noisy(noise_multiplier=0.01, accountant=kind).epsilon(50, 0.1) for kind in ("rdp", "prv")}
    assert weak["prv"] == weak["rdp"] > 1e5, "the tighter accountant would need gigabytes here"
    grows = [noisy().epsilon(steps, 0.1) for steps in (1, 2, 10, 100)]
    assert grows == sorted(set(grows))


@pytest.mark.long
@needs_opacus
@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0, 99.0, 101.0, 200.0, 1000.0])
def test_noise_for_and_epsilon_agree(epsilon: float, accountant: Literal["rdp", "prv"]) -> None:
    def spent(noise: float) -> float:
        return noisy(noise_multiplier=noise, delta=1e-4, accountant=accountant).epsilon(20, 0.1)

    noise = noise_for(epsilon, 1e-4, 0.1, 20, accountant)
    assert spent(noise) <= epsilon < spent(noise * 0.98)
    if epsilon != 99.0 or accountant == "rdp":  # prv gives way to rdp where that says 100
        assert spent(noise) > 0.99 * epsilon - 1e-9


@needs_opacus
@pytest.mark.parametrize("noise", [0.2, 0.5, 1.0, 3.0])
def test_the_noise_for_what_a_noise_spends_is_that_noise(noise: float) -> None:
    spent = noisy(noise_multiplier=noise, delta=1e-4).epsilon(20, 0.1)
    assert noise_for(spent, 1e-4, 0.1, 20) == pytest.approx(noise, rel=0.02)


@needs_opacus
def test_the_tighter_accountant_wants_less_noise() -> None:
    assert noise_for(3.0, 1e-4, 0.1, 200, "prv") < noise_for(3.0, 1e-4, 0.1, 200)


@needs_opacus
def test_an_epsilon_that_no_noise_reaches() -> None:
    with pytest.raises(
        UserError, match=r"^epsilon=1e-07, delta=0.001: no noise is enough: 1.04858e\+06 spends 0.0\d+$"
    ):
        noise_for(1e-7, 1e-3, 0.1, 10)
    with pytest.raises(UserError, match=r"^epsilon=1e\+30, .*: hardly any noise is enough: 9.53674e-07 spends \d.*$"):
        noise_for(1e30, 1e-3, 0.1, 10)
    with pytest.raises(UserError, match=r"steps=0: must be epsilon > 0, 0 < delta < 1, 0 < rate <= 1 and steps >= 1"):
        noise_for(1.0, 1e-3, 0.1, 0)


@pytest.mark.long
@needs_opacus
@pytest.mark.parametrize("name", world.STRATEGIES)
def test_epsilon_grows_with_the_rounds_of_every_strategy(name: str) -> None:
    """Or it is refused: what a strategy makes of the examples by itself has no noise."""
    made = population(noisy(), name)
    refused = ""
    try:
        rounds, network = run(made, Schedule(rounds=3, seed=0, max_examples=100, evaluate_every=0))
    except UserError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("client.privacy: protects what `fit` makes of the examples")
        return
    taken = network.memories.states[0]["privacy"]["steps"]
    fits = taken // (3 * -(-made.shares[0].size // 4))  # in a round: Ditto has two
    assert fits in (1, 2)
    for done in rounds:
        assert "train_loss" not in done.row
        spent = {
            share.size: noisy().epsilon(fits * done.number * -(-share.size // 4), 4 / share.size)
            for share in made.shares
        }
        assert done.row["max_epsilon"] == max(spent.values()), "the smallest client's, not the mean"
    for id, share in enumerate(made.shares):
        assert network.memories.states[id]["privacy"] == {"steps": fits * 3 * -(-share.size // 4)}


@needs_opacus
def test_an_upload_tells_no_loss_and_a_strategy_gets_no_examples() -> None:
    made = population(noisy(), epochs=2)
    client = made.client(0, {"privacy": {"steps": 5}})
    client.load(client.initial)
    metrics = client.fit(1)
    assert metrics == {"examples": 8.0, "max_epsilon": noisy().epsilon(9, 0.5)}
    with pytest.raises(UserError, match="protects what `fit` makes of the examples"):
        next(client.batches(1))


def test_the_largest_is_that_of_those_who_report_it() -> None:
    """A client whose epsilon is not finite hides nobody's; what one of many invents is no column."""
    reports = [{"examples": 1, "loss": 1.0, "max_epsilon": 2.0}, {"examples": 3, "loss": 2.0}, {"examples": 1}]
    uploads = {id: Payload(metrics=report) for id, report in enumerate(reports)}
    assert _averages(uploads) == {}
    uploads[3] = Payload(metrics={"examples": 1, "max_epsilon": 1.5})
    assert _averages(uploads) == {"max_epsilon": 2.0}
    del uploads[2], uploads[3]
    assert _averages(uploads) == {"loss": 1.75, "max_epsilon": 2.0}
    assert _averages({}) == {}


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"noise_multiplier": -1.0}, "privacy.noise_multiplier must be finite and at least 0, not -1.0"),
        ({"noise_multiplier": math.nan}, "privacy.noise_multiplier must be finite and at least 0, not nan"),
        ({"max_grad_norm": 0.0}, "privacy.max_grad_norm must be above 0, not 0.0"),
        ({"max_grad_norm": math.nan}, "privacy.max_grad_norm must be above 0, not nan"),
        ({"max_grad_norm": math.inf}, "privacy.max_grad_norm=inf: only without noise"),
        ({"delta": 0.0}, "privacy.delta must be in (0, 1), not 0.0"),
        ({"accountant": "gdp"}, "privacy.accountant must be rdp or prv, not gdp"),
        ({"chunk": 0}, "privacy.chunk must be at least 1, not 0"),
    ],
)
def test_what_is_wrong_with_privacy(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        noisy(**changes)
    assert str(error.value).startswith(line)


def test_what_is_counted_assumes_poisson() -> None:
    with pytest.raises(UserError, match="sampling=shuffle: privacy needs poisson"):
        training(CUT, sampling="shuffle")
    with pytest.raises(UserError, match="sampling must be shuffle or poisson, not often"):
        training(None, sampling="often")


def test_without_noise_there_is_nothing_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    assert not noisy(noise_multiplier=0.0).noisy


class Counting(Net):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("seen", torch.zeros(world.FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "assigns":
            self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
        elif self.how == "adds one":
            self.seen += 1
        elif self.how == "adds them":
            self.seen += x.mean(0)
        elif x.sum().item() > 0:
            x = -x
        return super().forward(x)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("assigns", "client.privacy: the model changes its buffer seen when it is trained, so no example is alone"),
        ("adds one", "client.privacy: the model "),
        ("adds them", "client.privacy: the model "),
        ("looks", "client.privacy: the model has no gradient of a single example: vmap: "),
    ],
)
def test_models_without_a_gradient_of_one_example_are_refused(how: str, line: str) -> None:
    made = population(CUT, module=lambda: Counting(how))
    with pytest.raises(UserError) as error:
        fitted(made)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    client = made.client(0, {})
    client.load(client.initial)
    assert same(client.params(), made.scratch.initial)
    with unchanged(made.scratch), pytest.raises(UserError, match=r"^client\.privacy: the model "):
        attempt(made)


@contextmanager
def unchanged(scratch: Scratch) -> Iterator[None]:
    """The bits, the tensors themselves, the mode, and torch's own generator."""

    def everything() -> list[object]:
        module = scratch.module
        named = [*module.named_parameters(), *module.named_buffers()]
        grads = [parameter.grad for parameter in module.parameters()]
        held = [(name, id(tensor), tensor.requires_grad, tensor.tolist()) for name, tensor in named]
        gradients = [(id(grad), None if grad is None else grad.tolist()) for grad in grads]
        return [held, gradients, [inner.training for inner in module.modules()], torch.get_rng_state().tolist()]

    before = everything()
    yield
    assert everything() == before


@pytest.mark.parametrize("made", [None, CUT, "noisy"], ids=["plain", "cut", "noisy"])
def test_a_step_is_tried_without_a_trace(made: Privacy | str | None) -> None:
    if made == "noisy":
        extra("opacus")
    privacy = noisy() if isinstance(made, str) else made
    fine = population(privacy, batch_size=None)
    with unchanged(fine.scratch):
        attempt(fine)
    shuffled = population(None, sampling="shuffle", module=lambda: Counting("adds them"))
    with unchanged(shuffled.scratch):
        attempt(shuffled)

    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(world.FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, world.CLASSES))

    bad = population(privacy, module=module)
    with unchanged(bad.scratch), pytest.raises(UserError, match=r"^client.sampling=poisson: 1 is a BatchNorm"):
        attempt(bad)


@pytest.mark.parametrize("made", [None, CUT], ids=["plain", "cut"])
def test_batch_norm_is_refused_unless_it_stands_still(made: Privacy | None) -> None:
    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(world.FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, world.CLASSES))

    with pytest.raises(UserError, match=r"^client.sampling=poisson: 1 is a BatchNorm, which mixes a step's examples"):
        fitted(population(made, module=module))

    class Still(Scratch):
        def train(self) -> None:
            self.module[2].train()  # type: ignore[index, union-attr, operator]

    with seeds.scope(0, "model"):
        scratch = Still(module())
    fitted(Population(world.strategy("fedavg"), scratch, training(made), world.shares(), 0))


# ---- deployment


@needs_opacus
def test_in_a_deployment_each_client_has_a_secret_that_lasts(tmp_path: Path) -> None:
    from fedshare._proto.payload_pb2 import Request
    from fedshare.forms import wire
    from fedshare.transport.flower.participant import Participant, Terms

    def participant(folder: str, made: Privacy | None) -> Participant:
        here = population(made)
        return Participant(here, Terms.of("config", here), tmp_path / folder)

    def trained(who: Participant, id: int = 0, purpose: Purpose = Purpose.TRAIN, run: bytes = bytes(8)) -> Payload:
        download, data = wire.pack(Payload({"params": who.population.scratch.initial}))
        request = Request(round=1, base=0, keep=0, run=run, terms=who.terms.short, download=download)
        reply, tensors = who.answer(id, purpose, request, bytes(data))
        return wire.unpack(reply.upload, tensors)

    def params(upload: Payload) -> Tensors:
        return upload.tensors["params"]

    first = participant("a", noisy())
    trained(first, purpose=Purpose.EVALUATE)
    assert not list(tmp_path.rglob("secret"))
    upload = trained(first)
    assert upload.metrics.keys() == {"examples", "max_epsilon"}
    (path,) = tmp_path.rglob("secret")
    assert path == tmp_path / "a" / bytes(8).hex() / "client-0" / "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(path.read_text())) == 32

    again = participant("a", noisy())  # another process on the same disk, asked for the same round once more
    assert same(params(trained(again)), params(upload))
    elsewhere = participant("b", noisy())
    assert not same(params(trained(elsewhere)), params(upload))
    simulated = fitted(population(noisy()))
    assert not same(simulated, params(upload))
    trained(first, 1)
    trained(first, run=bytes([1] * 8))
    secrets = {path.read_text() for path in tmp_path.rglob("secret")}
    assert len(secrets) == 4

    path.write_text("short\n")
    with pytest.raises(UserError, match=r"the secret .*client-0/secret is damaged: it must be 64 hex digits"):
        Record(path.parent).secret  # noqa: B018

    public = participant("c", None)
    assert "train_loss" in trained(public).metrics
    assert not list((tmp_path / "c").rglob("secret"))


@needs_opacus
def test_in_a_deployment_every_answer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came too late, or of a round that was done again, has been seen; the server has the client forget it."""
    from fedshare._proto.payload_pb2 import Request
    from fedshare.forms import wire
    from fedshare.transport.flower.participant import Participant, Terms

    here = population(noisy())
    who = Participant(here, Terms.of("config", here), tmp_path)
    first = here.scratch.initial
    second = {name: tensor + 0.01 for name, tensor in first.items()}
    a_round = 2  # steps: 8 examples, 4 a step

    def trained(round: int, base: int, params: Tensors) -> tuple[float, Tensors]:
        """What the client says that it has spent, in rounds; and its upload."""
        download, data = wire.pack(Payload({"params": params}))
        request = Request(round=round, base=base, keep=0, run=bytes(8), terms=who.terms.short, download=download)
        reply, tensors = who.answer(0, Purpose.TRAIN, request, bytes(data))
        upload = wire.unpack(reply.upload, tensors)
        rounds = {noisy().epsilon(a_round * count, 0.5): count for count in range(1, 9)}
        return rounds[upload.metrics["max_epsilon"]], upload.tensors["params"]

    spent, late = trained(1, 0, first)
    assert spent == 1
    (ledger,) = tmp_path.rglob("ledger")
    assert ledger.stat().st_mode & 0o777 == 0o600
    assert trained(1, 0, second)[0] == 2, "the same round, of another model"
    spent, again = trained(1, 0, first)
    assert (spent, same(again, late)) == (2, True), "the same question: the same bits, and nothing more to pay"
    assert trained(2, 1, second)[0] == 3
    assert trained(3, 1, second)[0] == 4, "the server never took round 2"
    who = Participant(here, Terms.of("config", here), tmp_path)  # another process on the same disk
    assert trained(3, 1, second)[0] == 4
    assert trained(4, 0, first)[0] == 5, "the server has nothing of this client"
    lines = ledger.read_text().splitlines()
    assert [line.split()[::3] for line in lines] == [["1", "2"], ["1", "2"], ["2", "2"], ["3", "2"], ["4", "2"]]

    def full(path: Path, *rest: object, **more: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedshare.transport.flower.memory.write_atomically", full)
        with pytest.raises(OSError, match="no space"):
            trained(5, 4, first)
    ledger.unlink()
    with pytest.raises(UserError, match=r"client\.privacy: of 4 steps the client's record has 2: it is damaged"):
        trained(5, 4, first)
    ledger.write_text("".join(f"{line}\n" for line in [*lines, "6 1 x"]))
    with pytest.raises(
        UserError, match=r"the privacy record .*client-0/ledger is damaged: line 6 must be round, fit, SHA-256"
    ):
        trained(5, 4, first)


def test_a_client_without_privacy_needs_no_secret() -> None:
    made = population(None)
    plain = Client(0, 0, made.scratch, made.training, made.shares[0], {})
    plain.load(plain.initial)
    with seeds.scope("test"):
        plain.fit(1)
    assert same(plain.params(), fitted(made))
