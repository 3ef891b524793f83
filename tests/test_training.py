"""How a client trains: batches, steps, rates, clipping, precision, optimizers, and the step that is tried first."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import world
from fedshare import seeds
from fedshare.client import Client, Training
from fedshare.data.dataset import Dataset, Examples
from fedshare.data.partition import Iid
from fedshare.errors import RunHalted, UserError
from fedshare.network import Purpose, answer
from fedshare.payload import Payload
from fedshare.report.best import Best
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Part, Partitioned, Population, Simulation
from fedshare.simulation.trial import attempt
from fedshare.strategies.fedavg import FedAvg
from fedshare.tasks import Classification, Task
from fedshare.training import batching, rates
from fedshare.training.fit import Fit
from fedshare.training.parts import Parts, Role
from fedshare.training.private.budget import Budget
from fedshare.training.private.privacy import Privacy
from fedshare.training.scratch import Scratch

FEATURES, CLASSES = world.FEATURES, world.CLASSES


def plain(parameters: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def linear() -> nn.Module:
    with seeds.scope("training"):
        return nn.Linear(FEATURES, CLASSES)


def examples(count: int, key: str = "x") -> Examples:
    random = seeds.generator("training", key)
    y = torch.randint(CLASSES, (count,), generator=random)
    return Examples(torch.randn(count, FEATURES, generator=random) + torch.eye(CLASSES, FEATURES)[y], y)


def population(
    module: Callable[[], nn.Module] = linear,
    counts: tuple[int, ...] = (31,),
    task: Task | None = None,
    parts: Callable[[nn.Module], Parts] = Parts.of,
    **training: Any,
) -> Population:
    made = module()
    shares = [Part(examples(count, f"train {id}"), examples(6, f"test {id}")) for id, count in enumerate(counts)]
    how = Training(**{"optimizer": plain, "batch_size": 10} | training)
    extra = {} if task is None else {"task": task}
    return Population(FedAvg(), Scratch(made, parts=parts(made)), how, shares, 0, **extra)  # type: ignore[arg-type]


def client(**given: Any) -> Client:
    made = population(**given).client(0, {})
    made.load({})
    return made


# Batches


@pytest.mark.parametrize(
    ("count", "size", "join", "drop", "keep"),
    [
        (31, 10, [10, 10, 11], [10, 10, 10], [10, 10, 10, 1]),
        (32, 10, [10, 10, 10, 2], [10, 10, 10], [10, 10, 10, 2]),
        (30, 10, [10, 10, 10], [10, 10, 10], [10, 10, 10]),
        (1, 10, [1], [1], [1]),
        (7, 10, [7], [7], [7]),
        (3, 1, [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        (11, 10, [11], [10], [10, 1]),
        (31, None, [31], [31], [31]),
        (0, 10, [], [], []),
    ],
)
def test_what_becomes_of_a_short_last_batch(
    count: int, size: int | None, join: list[int], drop: list[int], keep: list[int]
) -> None:
    assert batching.sizes(count, size, "join") == join
    assert batching.sizes(count, size, "drop") == drop
    assert batching.sizes(count, size, "keep") == keep


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 25), st.sampled_from(["join", "keep"]))
def test_each_pass_has_every_example_once(count: int, size: int, steps: int, last: Any) -> None:
    pieces = batching.sizes(count, size, last)
    rows = [some.tolist() for some in batching.passes(pieces, steps, count, seeds.generator("passes"))]
    assert [len(some) for some in rows] == (pieces * (steps + 1))[:steps]
    for start in range(0, steps - len(pieces) + 1, len(pieces)):
        assert sorted(row for some in rows[start : start + len(pieces)] for row in some) == list(range(count))


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"epochs": 1}, 3),
        ({"epochs": 2}, 6),
        ({"epochs": 0.5}, 2),  # half of three batches, in whole steps
        ({"epochs": 1.34}, 5),
        ({"epochs": 0.01}, 1),
        ({"steps": 7}, 7),
        ({"steps": 1, "epochs": 5}, 1),
        ({"steps": 2, "batch_size": None}, 2),
    ],
)
def test_steps_and_parts_of_a_pass(given: dict[str, Any], steps: int) -> None:
    made = client(**given)
    assert len(list(made.batches(1))) == steps
    assert len(list(made.batches(1, epochs=1))) == (1 if given.get("batch_size", 1) is None else 3)  # a strategy's wish


def test_orders_differ_by_round_and_client_and_are_the_same_again() -> None:
    def order(id: int, round: int) -> list[float]:
        made = population(counts=(31, 31)).client(id, {})
        return torch.cat([x[:, 0] for x, _ in made.batches(round)]).tolist()

    first = order(0, 1)
    assert order(0, 1) == first
    assert order(0, 2) != first
    assert sorted(order(0, 2)) == sorted(first)


class Dropping(nn.Module):
    """Returns what its dropout lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(FEATURES, CLASSES)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.drop(torch.ones(8, FEATURES)) > 0)
        answer: Tensor = self.linear(x)
        return answer


def test_what_a_model_draws_is_its_client_s_and_its_round_s_own() -> None:
    made = population(Dropping, counts=(31, 31), batch_size=None)
    download = Payload({"params": made.scratch.initial})

    def drawn(id: int, round: int) -> Tensor:
        made.scratch.module.seen.clear()  # type: ignore[union-attr, operator]
        answer(made.strategy, made.client(id, {}), Purpose.TRAIN, round, download)
        first: Tensor = made.scratch.module.seen[0]  # type: ignore[union-attr, index]
        return first

    usual = drawn(0, 1)
    assert torch.equal(drawn(0, 1), usual)
    assert not torch.equal(drawn(1, 1), usual)
    assert not torch.equal(drawn(0, 2), usual)


def test_what_is_derived_from_the_model_is_made_once_for_all_clients() -> None:
    made, calls = population(counts=(31, 20)), list[int]()
    for id in (0, 1, 0):
        assert made.client(id, {}).once("key", lambda: calls.append(1) or 7) == 7  # type: ignore[func-returns-value]
    assert calls == [1]


@pytest.mark.parametrize("flat", [True, False])
def test_weight_decay_leaves_what_a_fit_does_not_train(flat: bool) -> None:
    made = client(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.5), flat=flat)
    before = made.params()
    made.fit(1, ["bias"])
    after = made.params()
    assert torch.equal(after["weight"], before["weight"])
    assert not torch.equal(after["bias"], before["bias"])


def test_the_rate_is_that_of_the_round() -> None:
    def moved(round: int) -> float:
        made = client(batch_size=None, lr_decay=0.5)
        before = made.params()
        made.fit(round)
        return float((made.params()["bias"] - before["bias"]).norm())

    assert moved(2) == pytest.approx(moved(1) / 2, rel=1e-5)
    assert moved(1) == pytest.approx(0.1 * float(gradient_of_bias().norm()), rel=1e-5)


def gradient_of_bias() -> Tensor:
    made = client(batch_size=None)
    module = linear()
    (x, y), *_ = made.batches(1)
    (found,) = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), [module.bias])  # type: ignore[list-item]
    return found


def test_poisson_steps_go_by_the_same_settings() -> None:
    for wish, steps in (({"epochs": 0.5}, 2), ({"steps": 9}, 9), ({"epochs": 2}, 8)):
        made = client(sampling="poisson", **wish)
        asked = Fit(round=1, names=tuple(made._scratch.trainable))
        parts = made._scratch, made.task, made.training, made.train_examples
        assert Budget(0, 0, None).steps((), asked, *parts).steps == steps


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"epochs": math.inf}, "epochs must be above 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"last_batch": "pad"}, "last_batch must be join, drop or keep"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"precision": "int8"}, "precision must be float32 or bfloat16"),
        ({"layout": "nhwc"}, "layout must be contiguous or channels_last, not nhwc"),
        ({"compile": True, "sampling": "poisson"}, "compile=true: not with sampling=poisson"),
        ({"optimizer": torch.optim.LBFGS, "sampling": "poisson"}, "optimizer: LBFGS asks for a step's loss again"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        population(**given)


def normed() -> nn.Module:
    with seeds.scope("training"):
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


def test_a_single_last_example_trains_under_batch_norm() -> None:
    made = population(normed, counts=(31, 11, 21))
    attempt(made)
    rounds = run_server(
        FedAvg(), Simulation(lambda: made), {"params": made.scratch.initial}, Schedule(rounds=2, seed=0)
    )
    assert [done.row["dropped"] for done in rounds] == [{}, {}]


# Rates


def test_rates_by_hand() -> None:
    assert [rates.Constant()(number) for number in (1, 9)] == [1, 1]
    step = rates.Step(every=2, factor=0.5)
    assert [step(number) for number in range(1, 6)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = rates.Cosine(rounds=5, least=0.2)
    assert [round(cosine(number), 6) for number in (1, 3, 5, 9)] == [1, 0.6, 0.2, 0.2]
    warmup = rates.WarmUp(rounds=3, then=step)
    assert [warmup(number) for number in range(1, 8)] == [0.25, 0.5, 0.75, 1, 1, 0.5, 0.5]


SCHEDULERS = {
    "step": partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5),
    "multi": partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 5]),
    "exponential": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    "cosine": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
    "restarts": partial(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0=4),
    "polynomial": partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=5, power=2.0),
    "linear": partial(torch.optim.lr_scheduler.LinearLR, total_iters=4),
    "one cycle": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=3.0, total_steps=12),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_torchs_gives_its_rate_of_each_round(name: str) -> None:
    optimizer = plain([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, expected = SCHEDULERS[name](optimizer), []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    one = rates.TorchSchedule(SCHEDULERS[name])
    assert [one(round) for round in range(1, 11)] == expected
    assert rates.TorchSchedule(SCHEDULERS[name])(7) == expected[6]  # whoever comes late has the same
    assert one(3) == expected[2]


@pytest.mark.parametrize(
    "scheduler", [torch.optim.lr_scheduler.ReduceLROnPlateau, partial(torch.optim.lr_scheduler.StepLR)]
)
def test_a_scheduler_that_does_not_go_by_the_round_is_refused(scheduler: Any) -> None:
    with pytest.raises(UserError, match=r"^scheduler: .*; one that goes by the round alone is required"):
        rates.TorchSchedule(scheduler)


def test_the_rate_multiplies_the_optimizers() -> None:
    moved = []
    for round, schedule in ((1, rates.Constant()), (3, rates.Step(every=2, factor=0.5))):
        made = client(steps=1, batch_size=None, schedule=schedule)
        made.fit(round)
        moved.append(made.params()["weight"] - made.initial["weight"])
    torch.testing.assert_close(moved[1], 0.5 * moved[0])


# Steps


@pytest.mark.parametrize("flat", [True, False])
def test_a_gradient_is_cut_to_a_norm_over_all_tensors(flat: bool) -> None:
    made = client(steps=1, batch_size=None, clip_norm=1e-3, flat=flat, optimizer=partial(plain, lr=1.0))
    made.fit(1)
    change = torch.cat([(made.params()[name] - made.initial[name]).flatten() for name in made.initial])
    assert float(change.norm()) == pytest.approx(1e-3, rel=1e-3)
    loose = client(steps=1, batch_size=None, clip_norm=1e9)
    free = client(steps=1, batch_size=None)
    assert all(torch.equal(loose.params()[n], free.params()[n]) for n in free.initial if loose.fit(1) == free.fit(1))


@pytest.mark.parametrize("flat", [True, False])
def test_lbfgs_gets_its_closure(flat: bool) -> None:
    made = client(optimizer=partial(torch.optim.LBFGS, lr=0.5, max_iter=5), batch_size=None, epochs=4, flat=flat)
    before = made.loss_over(made.train_examples)
    metrics = made.fit(1)
    assert made.loss_over(made.train_examples) < 0.5 * before
    assert metrics["train_loss"] < before
    one = client(batch_size=None, optimizer=partial(torch.optim.LBFGS, lr=0.5, max_iter=5))
    one.load({})
    assert one.fit(1)["train_loss"] == pytest.approx(before), "the loss before the step"

    by_hand = linear()
    optimizer = torch.optim.LBFGS(by_hand.parameters(), lr=0.5, max_iter=5)
    for x, y in client(batch_size=None, epochs=4).batches(1):

        def closure(x: Any = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(by_hand(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    torch.testing.assert_close(made.params()["weight"], by_hand.weight.detach(), rtol=1e-3, atol=1e-4)


def test_autocast_computes_in_few_bits_and_weights_stay_in_float32() -> None:
    made, full = (client(precision=precision, steps=3) for precision in ("bfloat16", "float32"))
    losses = [one.fit(1)["train_loss"] for one in (made, full)]
    assert made.params()["weight"].dtype == torch.float32
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert all(value.dtype in (torch.float64, torch.int64) for value in made.sums(made.test_examples).values())


class Watching(nn.Module):
    """Notes the layout in which its convolution computes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4 * 4, CLASSES)
        self.seen: set[tuple[bool, bool]] = set()  # whether it trains, and whether channels are last

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.seen.add((self.training, x.is_contiguous(memory_format=torch.channels_last)))
        out: Tensor = self.head(x.relu().flatten(1))
        return out


@pytest.mark.parametrize("sampling", ["shuffle", "poisson"])
@pytest.mark.parametrize("channels", [1, 2])
def test_images_have_the_configured_layout_in_steps_and_tests(channels: int, sampling: str) -> None:
    def fitted(layout: str) -> tuple[set[tuple[bool, bool]], Tensor]:
        with seeds.scope("layout"):
            scratch = Scratch(module := Watching(channels).double())
        x = torch.randn(12, channels, 4, 4, generator=seeds.generator("images"), dtype=torch.float64)
        part = Examples(x, torch.arange(12) % CLASSES)
        how = Training(optimizer=plain, batch_size=5, layout=layout, sampling=sampling)  # type: ignore[arg-type]
        made = Population(FedAvg(), scratch, how, [Part(part, part)], 0).client(0, {})
        made.load({})
        made.fit(1)
        made.evaluate()
        return module.seen, scratch.vector.clone()

    (last, there), (first, here) = fitted("channels_last"), fitted("contiguous")
    assert last == {(True, True), (False, True)}
    assert first == {(True, False), (False, False)}
    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-12)  # only the order of sums may differ


@pytest.mark.long
def test_a_compiled_model_trains_as_the_model_does_and_is_compiled_once() -> None:
    made = population(counts=(31, 20), compile=True, clip_norm=1.0)
    compiled = []
    for id in (0, 1):
        ours, theirs = made.client(id, {}), population(counts=(31, 20), clip_norm=1.0).client(id, {})
        for one in (ours, theirs):
            one.load({})
        losses = [one.fit(1)["train_loss"] for one in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        torch.testing.assert_close(ours.params(), theirs.params(), rtol=1e-4, atol=1e-5)
        compiled.append(made.scratch.cache["compiled"])
    assert compiled[0] is compiled[1] is not made.scratch.module


def test_a_model_that_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(UserError, match=r"^client.compile=true: .*no compiler here$"):
        client(compile=True).fit(1)


def test_the_training_loss_is_the_mean_over_targets_not_over_batches() -> None:
    made = client(last_batch="keep", epochs=1, optimizer=partial(plain, lr=0.0))
    assert made.fit(1)["train_loss"] == pytest.approx(made.loss_over(made.train_examples), rel=1e-6)


# Frozen parts of any type, complex parameters, parameters of any shape


class Quantised(nn.Module):
    """A frozen base in 8 bits, a half-precision one, a head to train."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.randint(-8, 8, (FEATURES, 8), generator=seeds.generator("base")).to(torch.int8)
        self.base = nn.Parameter(base, requires_grad=False)
        self.scale = nn.Parameter(torch.ones(8, dtype=torch.bfloat16), requires_grad=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(x @ (self.base / 64.0) * self.scale.float())
        return answer


def test_what_is_frozen_has_types_of_its_own_and_never_moves() -> None:
    made = population(Quantised, counts=(31, 20))
    scratch = made.scratch
    before = {name: value.clone() for name, value in scratch.whole.items()}
    assert list(scratch.initial) == ["head.weight", "head.bias"]
    assert scratch.size == sum(parameter.numel() for parameter in Quantised().parameters())
    attempt(made)
    network = Simulation(lambda: made)
    *_, last = run_server(FedAvg(), network, {"params": scratch.initial}, Schedule(rounds=2, seed=0))
    assert not torch.equal(last.state["params"]["head.weight"], before["head.weight"])
    scratch.module.base.data.add_(1)  # type: ignore[union-attr, operator]  # whoever does that: it is undone
    scratch.load({})
    for name in ("base", "scale"):
        value = dict(scratch.module.named_parameters())[name]
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_trained_tensors_of_two_types_are_refused() -> None:
    def two() -> nn.Module:
        return nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).double()])

    with pytest.raises(UserError, match="what is trained of it must have one type"):
        Scratch(two())


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with seeds.scope("complex"):
            self.bias = nn.Parameter(torch.zeros(CLASSES))
            self.w = nn.Parameter(torch.randn(FEATURES, CLASSES, dtype=torch.cfloat) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.cfloat) @ self.w).abs() + self.bias


@pytest.mark.parametrize("flat", [True, False])
def test_complex_parameters_step_as_in_torch(flat: bool) -> None:
    made = client(module=Complex, epochs=2, optimizer=partial(torch.optim.Adam, lr=0.01), flat=flat)
    assert {name: list(tensor.shape) for name, tensor in made.initial.items()} == {
        "w": [FEATURES, CLASSES, 2],
        "bias": [CLASSES],
    }
    by_hand = Complex()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    for x, y in made.batches(1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(x), y).backward()
        optimizer.step()
    made.fit(1)
    torch.testing.assert_close(torch.view_as_complex(made.params()["w"]), by_hand.w.detach())
    torch.testing.assert_close(made.params()["bias"], by_hand.bias.detach())


@pytest.mark.parametrize("name", ["median", "krum", "qffl", "rffl", "onebyte", "fedcac", "ditto"])
def test_strategies_take_complex_parameters_as_real_ones(name: str) -> None:
    made = replace(population(Complex, counts=(31, 20, 25, 30, 22)), strategy=world.strategy(name))
    network = Simulation(lambda: made)
    state = made.strategy.init(made.scratch.initial, made.clients)
    rows = [done.row for done in run_server(made.strategy, network, state, Schedule(rounds=3, seed=0))]
    assert all(not row["dropped"] for row in rows)
    assert rows[0]["loss"] != rows[-1]["loss"]


def test_a_complex_local_part_where_it_cannot_lie_is_refused() -> None:
    def local(module: nn.Module) -> Parts:
        return Parts({"w": Role.LOCAL, "bias": Role.SHARED})

    with pytest.raises(UserError, match=r"model: w is complex, and in peft\.local"):
        population(Complex, parts=local)  # three shared floats lie before it


class Shapes(nn.Module):
    """A scalar, an empty tensor, a complex one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.inner = Complex()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.inner(x) * self.scale + self.nothing.sum()
        return answer


@pytest.mark.parametrize("flat", [True, False])
def test_parameters_of_every_shape_are_trained_in_private(flat: bool) -> None:
    privacy = Privacy(noise_multiplier=0.0, max_grad_norm=0.5, delta=1e-3)
    made = population(Shapes, sampling="poisson", privacy=privacy, steps=1, batch_size=None, flat=flat)
    attempt(made)
    one = made.client(0, {})
    one.load({})
    one.fit(1)
    module, total = Shapes(), dict[str, Tensor]()
    module.load_state_dict(
        {n: torch.view_as_complex(t) if n == "inner.w" else t for n, t in made.scratch.whole.items()}
    )
    x, y = one.train_examples.batch(slice(None))
    for row in range(len(y)):
        module.zero_grad()
        nn.functional.cross_entropy(module(x[row : row + 1]), y[row : row + 1]).backward()
        slopes = {name: parameter.grad for name, parameter in module.named_parameters()}
        norm = math.sqrt(sum(float((slope.abs() ** 2).sum()) for slope in slopes.values() if slope is not None))
        for name, slope in slopes.items():
            total[name] = total.get(name, 0) + slope * min(1.0, 0.5 / norm)  # type: ignore[operator]
    for name, slope in total.items():
        real = torch.view_as_real(slope) if slope.is_complex() else slope
        expected = made.scratch.whole[name] - 0.1 * real / len(y)
        torch.testing.assert_close(one.params()[name], expected, rtol=1e-4, atol=1e-6)


# The step that is tried first


class Aux(nn.Module):
    """Logits, and in training a second set of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return (self.a(x), self.b(x)) if self.training else self.a(x)


class Moody(Aux):
    def forward(self, x: Tensor) -> Any:
        if self.training:
            raise NotImplementedError("not in training")
        return self.a(x)


class Halves(Aux):
    def forward(self, x: Tensor) -> Any:
        return self.a(x.half())


def test_what_can_be_tried_leaves_no_trace() -> None:
    for module in (linear, normed, Aux, Quantised, Complex):
        made = population(module, counts=(31, 20))
        before = made.scratch.flat.clone(), torch.get_rng_state()
        attempt(made)
        assert torch.equal(made.scratch.flat, before[0])
        assert torch.equal(torch.get_rng_state(), before[1])
        assert not made.scratch.gradient.any()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"module": normed, "counts": (31, 1)},
            "model: fails in training: .*a client has a batch of one, which a BatchNorm",
        ),
        ({"module": normed, "last_batch": "keep"}, "a client has a batch of one"),
        ({"module": Moody}, "model: fails in training: not in training"),
        ({"optimizer": torch.optim.SparseAdam}, "client.optimizer: a step fails: .*parse"),
        ({"task": Classification(loss=lambda o, y: 3)}, "task.loss: gives int"),
        (
            {"task": Classification(loss=lambda o, y: o.missing)},
            "model: fails in training: 'Tensor' object has no attribute",
        ),
        ({"module": Halves}, r"\(inputs are float32 \[10, 6\]; targets int64 \[10\]\)"),
        (
            {"task": Classification(loss=lambda o, y: torch.nn.functional.cross_entropy(o.detach(), y))},
            "does not require grad.*: task.loss, or the model, must not detach",
        ),
    ],
)
def test_what_cannot_work_is_named_before_the_first_round(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        attempt(population(**given))
    assert "\n" not in str(error.value)


# Validation, newcomers, the best round


def divided(validation: float, unseen: int = 0, clients: int = 6) -> Population:
    dataset = Dataset("mine", examples(150), 120, CLASSES)
    shares = Partitioned(dataset, Iid(clients=clients), 0, validation)
    how = Training(optimizer=plain, batch_size=10)
    return Population(FedAvg(), Scratch(linear()), how, shares, 0, unseen=unseen)


def test_validation_is_a_part_of_the_training_part_and_no_other() -> None:
    whole, made = divided(0.0), divided(0.25)
    assert all(share.validation is None for share in whole.shares)
    for before, share in zip(whole.shares, made.shares, strict=True):
        assert share.validation is not None
        rows = [{tuple(row) for row in part.single.tolist()} for part in (share.train, share.validation, before.train)]
        assert rows[0] | rows[1] == rows[2]
        assert not rows[0] & rows[1]
        assert (share.size, len(share.validation)) == (len(share.train), round(0.25 * before.size))
        assert torch.equal(share.test.single, before.test.single)
    again = divided(0.25)
    assert all(torch.equal(a.train.single, b.train.single) for a, b in zip(made.shares, again.shares, strict=True))
    assert divided(0.99).sizes() == [1] * 6  # one is left to train on


def rows_of(made: Population, rounds: int = 3) -> list[dict[str, Any]]:
    schedule = Schedule(rounds=rounds, seed=0, unseen=tuple(made.newcomers), clients=len(made.shares))
    network = Simulation(lambda: made)
    state = made.strategy.init(made.scratch.initial, made.clients)
    return [done.row for done in run_server(made.strategy, network, state, schedule, task=made.task)]


def test_a_row_has_both_and_newcomers_apart() -> None:
    made = divided(0.25, unseen=2)
    assert len(made.newcomers) == 2
    for row in rows_of(made):
        assert not set(row["clients"]) & set(made.newcomers)
        assert row["per_client"]["accuracy"].keys() == {str(c) for c in range(6) if c not in made.newcomers}
        assert row["validation"].keys() == row["unseen"].keys() == {
            "accuracy", "loss", "accuracy_mean", "accuracy_worst10", "clients"
        }  # fmt: skip
        assert row["validation"]["loss"] != row["loss"] != row["unseen"]["loss"]
        assert (row["validation"]["clients"], row["unseen"]["clients"]) == (4, 2)
        assert (row["tested"], row["tested_of"], row["untested"], row["absent"]) == (6, 6, {}, [])
    assert "validation" not in rows_of(divided(0.0))[0]


@pytest.mark.parametrize("unseen", [6, 7, -1])
def test_somebody_has_to_train(unseen: int) -> None:
    with pytest.raises(UserError, match=f"unseen={unseen}: must be from 0 to 5"):
        _ = divided(0.0, unseen).newcomers


def test_the_best_round_goes_by_validation_and_its_direction() -> None:
    def seen(values: list[float | None], higher: bool, patience: int | None = None) -> Best:
        best = Best("accuracy", higher, patience)
        for number, value in enumerate(values, 1):
            best.see({"round": number} | ({} if value is None else {"validation": {"accuracy": value}}))
        return best

    assert (seen([0.1, 0.3, 0.2, 0.3], True).round, seen([0.1, 0.3, 0.2, 0.3], False).round) == (2, 1)
    assert seen([None, math.nan, 0.2], True).round == 3
    assert not seen([0.1, 0.3, 0.2], True, 2).over
    assert seen([0.1, 0.3, 0.2, 0.3], True, 2).over
    assert not seen([None, None, None], True, 1).over


# A client that raises


class Raising(FedAvg):
    """Client 1 raises in round 2, having spoilt its memory."""

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        client.state.setdefault("rounds", []).append(round)
        if client.id == 1 and round == 2:
            client.state["spoilt"] = 1
            raise ZeroDivisionError("its data are gone")
        return super().train(client, round, download)


def build_raising(clients: int = 3) -> Population:
    return replace(population(counts=(31, 20, 25)[:clients]), strategy=Raising())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_a_client_that_raises_is_dropped_or_ends_the_run(workers: int) -> None:
    with Simulation(build_raising, workers, on_error="drop") as network:
        rounds = list(
            run_server(Raising(), network, {"params": network.population.scratch.initial}, Schedule(rounds=3, seed=0))
        )
        memories = network.memories.remember()
    reason = "raised ZeroDivisionError: its data are gone (test_training.py, line "
    assert rounds[1].row["dropped"]["1"].startswith(reason)
    assert [list(done.row["dropped"]) for done in rounds] == [[], ["1"], []]
    assert memories == {0: {"rounds": [1, 2, 3]}, 1: {"rounds": [1, 3]}, 2: {"rounds": [1, 2, 3]}}
    with (
        Simulation(build_raising, workers) as network,
        pytest.raises(RunHalted, match="round 2: client 1: train: raised ZeroDivisionError: its data are gone"),
    ):
        list(run_server(Raising(), network, {"params": network.population.scratch.initial}, Schedule(rounds=3, seed=0)))


def test_a_run_halts_where_most_clients_raise() -> None:
    made = replace(population(counts=(31, 20)), strategy=Raising())
    network = Simulation(lambda: replace(made, shares=made.shares[1:] * 2), on_error="drop")

    class All(Raising):
        def train(self, client: Client, round: int, download: Payload) -> Payload:
            raise ValueError("nothing works")

    network.population = replace(network.population, strategy=All())
    with pytest.raises(RunHalted, match="2 of 2 uploads cannot be used: client 0: raised ValueError: nothing works"):
        list(run_server(All(), network, {"params": made.scratch.initial}, Schedule(rounds=1, seed=0)))
