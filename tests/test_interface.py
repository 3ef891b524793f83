"""How much a strategy and a network have to know: counted, and each part of it by hand."""

import ast
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import world
from fedshare.client import Client, Training
from fedshare.data.dataset import Examples
from fedshare.engine.single import Body, Single
from fedshare.forms import Dense
from fedshare.forms.codes import Codes
from fedshare.forms.sparse import Sparse
from fedshare.ledger import codes
from fedshare.ledger.coding import Byte, Coding, Float, Sign
from fedshare.network import Exchange, Network, Purpose
from fedshare.payload import Payload, flaw
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Part, Population, Simulation
from fedshare.state import State, digests
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategy import Strategy, weakness
from fedshare.tasks import Classification
from fedshare.tensors import Tensors
from fedshare.training import fit as fits
from fedshare.training.engine import Plain
from fedshare.training.fit import Batches, Fit
from fedshare.training.scratch import Scratch

each_strategy = pytest.mark.parametrize("name", world.STRATEGIES)

# Size


def members(kind: type) -> set[str]:
    """The public names of a class itself."""
    return {name for name in vars(kind) if not name.startswith("_")}


def test_a_strategy_is_five_steps_and_three_options() -> None:
    methods = {name for name in members(Strategy) if inspect.isfunction(vars(Strategy)[name])}
    steps = {"init", "download", "apply", "train", "aggregate"}
    assert Strategy.__abstractmethods__ == steps
    assert steps < methods
    assert len(methods) <= 8
    assert members(Strategy) - methods == {"optimizes", "form", "reports"}, "what is no method is a class attribute"


def test_a_network_has_three_members() -> None:
    assert members(Network) == {"memories", "client_ids", "exchange"}


@each_strategy
def test_no_strategy_has_public_methods_that_the_core_would_have_to_know(name: str) -> None:
    """A method that a strategy adds is its own, or is `weakness`, which is optional."""
    core = {"rounds", "network", "client", "simulation", "checkpoint"}
    own = {found for found, value in inspect.getmembers(world.strategy(name)) if inspect.ismethod(value)}
    added = {found for found in own - members(Strategy) - {"weakness"} if not found.startswith("_")}
    for module in core:
        for path in sorted((world.ROOT / "fedshare").glob(f"{module}.py")):
            asked = {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "strategy"
            }
            assert not asked & added, path


def test_every_strategy_that_can_be_chosen_has_a_config_of_its_name() -> None:
    """So that the contract covers it: what has none is no strategy that can be run."""
    for path in sorted((world.ROOT / "strategies").glob("*.py")):
        module = import_module(f"fedshare.strategies.{path.stem}")
        made = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Strategy)]
        here = [kind for kind in made if kind.__module__ == module.__name__ and not inspect.isabstract(kind)]
        assert bool(here) == (path.stem in world.STRATEGIES), path


@pytest.mark.parametrize("path", sorted((world.ROOT / "strategies").glob("*.py")), ids=lambda path: path.stem)
def test_a_strategy_asks_the_client_which_tensors_are_parameters(path: Any) -> None:
    named = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not named & {"Parameter", "named_parameters", "named_buffers", "parameters_to_vector"}


# What a person looks at


def test_keys_of_a_report_are_declared_with_what_they_mean() -> None:
    for name in world.STRATEGIES:
        strategy = world.strategy(name)
        network = Simulation(partial(world.build, name))
        state = world.begin(network.population)
        assert strategy.report(state).keys() <= strategy.reports.keys(), name
        for done in run_server(strategy, network, state, Schedule(rounds=2, seed=0, evaluate_every=0)):
            found = strategy.report(done.state)
            assert found.keys() <= strategy.reports.keys(), name
            assert found.items() <= done.row.items(), "it is in the round's row"
        assert all(isinstance(meaning, str) and meaning for meaning in strategy.reports.values()), name


def test_only_who_promises_to_withstand_liars_can_be_too_weak() -> None:
    assert weakness(FedAvg(), [0]) is None

    @dataclass(frozen=True)
    class Two(FedAvg):
        def weakness(self, clients: Any) -> str | None:
            return None if len(clients) > 1 else "one alone"

    assert weakness(Two(), [3]) == "one alone"
    assert weakness(Two(), {3: Payload(), 4: Payload()}) is None


# Training as data


def one_layer(**training: Any) -> tuple[Scratch, Training, Examples]:
    """A linear model of one output pair, two examples, and plain gradient descent."""
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        module.bias.copy_(torch.tensor([0.5, -0.5]))
    how = {"optimizer": partial(torch.optim.SGD, lr=0.5), "batch_size": None, "epochs": 1} | training
    examples = Examples(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0, 1]))
    return Scratch(module), Training(**how), examples


def gradient_by_hand(weight: Tensor, bias: Tensor, examples: Examples) -> dict[str, Tensor]:
    """Of the mean cross-entropy: (softmax - one hot) x / n."""
    x = examples.single
    error = (x @ weight.T + bias).softmax(1) - torch.eye(2)[examples.y]
    return {"weight": error.T @ x / len(x), "bias": error.mean(0)}


CORRECTION = {"weight": torch.tensor([[1.0, -2.0], [0.5, 0.0]]), "bias": torch.tensor([0.25, -3.0])}


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("pull", [0.0, 0.4])
def test_a_correction_is_added_to_the_gradient_of_each_step(flat: bool, pull: float) -> None:
    scratch, training, examples = one_layer(flat=flat, epochs=3)
    client = Client(0, 0, scratch, training, Part(examples, examples), {})
    client.load({})
    anchor = {"weight": torch.full((2, 2), 0.3), "bias": torch.zeros(2)}
    now = client.params()
    client.fit(1, correction=CORRECTION, toward=anchor, pull=pull)
    for _ in range(3):
        slope = gradient_by_hand(now["weight"], now["bias"], examples)
        now = {n: t - 0.5 * (slope[n] + pull * (t - anchor[n]) + CORRECTION[n]) for n, t in now.items()}
    for name, tensor in client.params().items():
        torch.testing.assert_close(tensor, now[name])


def test_a_correction_is_clipped_with_the_gradient() -> None:
    scratch, training, examples = one_layer(clip_norm=0.1)
    client = Client(0, 0, scratch, training, Part(examples, examples), {})
    client.load({})
    before = client.params()
    client.fit(1, correction={name: 100 * tensor for name, tensor in CORRECTION.items()})
    moved = [(client.params()[name] - before[name]) / -0.5 for name in before]
    length = math.sqrt(sum(float(change.square().sum()) for change in moved))
    assert length == pytest.approx(0.1, rel=1e-4)
    slope = gradient_by_hand(before["weight"], before["bias"], examples)
    wanted = [slope[name] + 100 * CORRECTION[name] for name in before]
    whole = math.sqrt(sum(float(change.square().sum()) for change in wanted))
    for found, expected in zip(moved, wanted, strict=True):
        torch.testing.assert_close(found, expected * 0.1 / whole, rtol=1e-3, atol=1e-6)


def test_without_a_correction_the_bits_are_those_of_none() -> None:
    found = []
    for correction in (None, {}, {"bias": torch.zeros(2)}):
        scratch, training, examples = one_layer()
        client = Client(0, 0, scratch, training, Part(examples, examples), {})
        client.load({})
        client.fit(1, correction=correction)
        found.append(digests({"params": client.params()}))
    assert found[0] == found[1] == found[2]


def test_only_what_is_trained_is_corrected() -> None:
    scratch, training, examples = one_layer()
    client = Client(0, 0, scratch, training, Part(examples, examples), {})
    client.load({})
    before = client.params()
    client.fit(1, ["bias"], correction=CORRECTION)
    assert torch.equal(client.params()["weight"], before["weight"])
    slope = gradient_by_hand(before["weight"], before["bias"], examples)["bias"]
    torch.testing.assert_close(client.params()["bias"], before["bias"] - 0.5 * (slope + CORRECTION["bias"]))


@pytest.mark.parametrize("option", ["toward", "correction"])
@pytest.mark.parametrize(
    ("tensors", "kind", "reason"),
    [
        ({"wieght": torch.zeros(2, 2)}, KeyError, "the model has no tensor wieght"),
        ({"weight": torch.zeros(2)}, ValueError, "weight has shape [2], not [2, 2]"),
        ({"weight": torch.zeros(1, 2)}, ValueError, "weight has shape [1, 2], not [2, 2]"),
        ({"bias": torch.zeros(())}, ValueError, "bias has shape [], not [2]"),
    ],
)
def test_a_misspelt_or_broadcast_tensor_is_refused(
    option: str, tensors: Tensors, kind: type[Exception], reason: str
) -> None:
    scratch, training, examples = one_layer()
    client = Client(0, 0, scratch, training, Part(examples, examples), {})
    client.load({})
    before = client.params()
    with pytest.raises(kind) as refused:
        client.fit(1, pull=0.1, **{option: tensors})  # type: ignore[arg-type]
    assert refused.value.args[0] == reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in client.params().items())


@pytest.mark.parametrize("sampling", ["shuffle", "poisson"])
@pytest.mark.parametrize("epochs", [None, 0.5, 3])
def test_a_client_knows_how_many_steps_its_training_has(sampling: str, epochs: float | None) -> None:
    scratch, training, examples = one_layer(sampling=sampling, batch_size=3, last_batch="keep", epochs=2)
    taken = []

    class Counting(Plain):
        def train(self, scratch: Scratch, training: Training, fit: Fit, steps: fits.Steps) -> float:
            taken.append(sum(1 for _ in steps.batches()))
            return 0.0

    client = Client(0, 0, scratch, training, Part(examples, examples), {}, engine=Counting())
    client.load({})
    client.fit(1, epochs=epochs)
    assert taken == [client.steps(epochs)]


def test_the_plain_engine_runs_a_fit_without_a_client() -> None:
    scratch, training, examples = one_layer()
    before = scratch.params()
    asked = Fit(round=1, names=("weight", "bias"), correction=CORRECTION)
    steps = Batches(scratch, Classification(), training, examples, [torch.arange(2)])
    loss = Plain().train(scratch, training, asked, steps)
    slope = gradient_by_hand(before["weight"], before["bias"], examples)
    for name, tensor in scratch.params().items():
        torch.testing.assert_close(tensor, before[name] - 0.5 * (slope[name] + CORRECTION[name]))
    logits = examples.single @ before["weight"].T + before["bias"]
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, examples.y)), rel=1e-5)


def test_a_client_asks_its_simulation_s_engine() -> None:
    asked: list[Fit] = []

    class Watched(Plain):
        def train(self, scratch: Scratch, training: Training, fit: Fit, steps: fits.Steps) -> float:
            asked.append(fit)
            return super().train(scratch, training, fit, steps)

    class Watching(Single):
        def play(self, bodies: Sequence[Body[Any]]) -> list[Any]:
            return [body(made.scratch, Watched()) for body in bodies]

    made = world.build("ditto")
    usual, other = Simulation(lambda: made, engine=Watching), Simulation(partial(world.build, "ditto"))
    links = [
        [done.link for done in run_server(made.strategy, network, world.begin(made), Schedule(rounds=1, seed=0))]
        for network in (usual, other)
    ]
    assert links[0] == links[1]
    assert [bool(fit.toward) for fit in asked] == [False, True] * world.CLIENTS
    assert {fit.pull for fit in asked if fit.toward} == {made.strategy.lam}  # type: ignore[attr-defined]


# What a client remembers


def personal() -> Client:
    from fedshare.peft import Full

    model, parts = Full(head=None, local=["last.*"]).tune(world.Net())
    training = Training(optimizer=world.sgd, batch_size=4)
    return Population(FedAvg(), Scratch(model, parts=parts), training, world.shares(), 0).client(0, {})


def test_a_fit_keeps_the_local_part_unless_it_is_told_not_to() -> None:
    client = personal()
    client.load({})
    client.fit(1, keep_local=False)
    assert client.state == {}
    client.fit(1)
    kept = digests(client.state)
    assert client.state["local"].keys() == {"last.weight", "last.bias"}
    client.fit(2, keep_local=False)
    assert digests(client.state) == kept
    now = client.params(client.local)
    assert any(not torch.equal(now[name], tensor) for name, tensor in client.state["local"].items()), "it trained"


def test_a_client_names_its_parameters_and_its_buffers() -> None:
    client = world.build("fedavg").client(0, {})
    assert client.parameters == {name for name, _ in world.Net().named_parameters()}
    assert client.parameters.isdisjoint(client.buffers)
    assert client.parameters | client.buffers >= set(client.initial)
    assert {"norm.running_mean", "norm.running_var", "seen"} <= client.buffers


@dataclass(frozen=True)
class Scribbling(FedAvg):
    """Its test writes down what it has seen, and trains."""

    def evaluate(self, client: Client, round: int) -> Payload:
        client.state["tests"] = client.state.get("tests", 0) + 1
        client.state.setdefault("deep", {"log": []})["log"].append(round)
        if "w" in client.state:
            client.state["w"].fill_(-1.0)
        client.fit(round)
        return client.evaluate()


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_test_changes_no_memory_whatever_it_writes(workers: int) -> None:
    with Simulation(partial(scribbling), workers) as network:
        memory: State = {"w": torch.ones(3), "deep": {"log": [7]}, "tests": 5}
        network.memories.recall({0: memory}, 1)
        download = Payload({"params": network.population.scratch.initial})
        exchanges = [network.exchange(Purpose.EVALUATE, 2, {0: download, 1: download}) for _ in range(2)]
        assert network.memories.remember() == {0: memory}
        assert (memory["deep"], memory["tests"], memory["w"].tolist()) == ({"log": [7]}, 5, [1.0] * 3)
        assert exchanges[0] == exchanges[1]
        assert exchanges[0].digests == {}


def scribbling() -> Population:
    return replace(world.build("fedavg"), strategy=Scribbling())


# What comes of an exchange


def test_an_exchange_says_who_answered_who_did_not_and_what_is_remembered() -> None:
    network = Simulation(partial(world.build, "ditto"))
    download = Payload({"params": network.population.scratch.initial})
    found = network.exchange(Purpose.TRAIN, 1, {3: download, 1: download})
    assert list(found.answers) == list(found.digests) == [1, 3]
    assert found.absent == {}
    assert found.digests == {client: digests(state) for client, state in network.memories.remember().items()}
    assert found.digests[1].keys() >= {"personal/first.weight"}
    assert network.exchange(Purpose.EVALUATE, 1, {1: download}).digests == {}
    assert Exchange({}) == Exchange({}, {}, {})


# Forms


def sparse(share: float, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.where(torch.rand(shape, generator=random) < share, torch.randn(shape, generator=random), 0.0)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_a_sparse_form_loses_nothing_and_is_never_larger(share: float) -> None:
    form = Sparse("update")
    update = {"a": sparse(share, 40, 25), "b": sparse(share, 3), "none": torch.zeros(0), "one": torch.tensor(2.0)}
    upload = Payload({"update": update}, {"examples": 3.0})
    sent = form.encode(upload)
    assert sent.nbytes <= upload.nbytes
    back = form.decode(sent, {"update": {name: torch.empty_like(t) for name, t in update.items()}})
    assert digests(back.tensors) == digests(upload.tensors)
    assert back.metrics == sent.metrics == upload.metrics
    if share == 1.0:
        assert sent is upload
    else:
        assert "update" not in sent.tensors


def test_a_sparse_form_is_of_one_group() -> None:
    sent = Sparse("params").encode(Payload({"params": {"w": sparse(0.1, 100)}}))
    assert "params" not in sent.tensors
    with pytest.raises(ValueError, match="values: has unknown w"):
        Sparse("params").decode(sent, {"params": {"v": torch.zeros(100)}})
    with pytest.raises(ValueError, match="groups: has unknown other"):
        Sparse("params").decode(Payload({"other": {}}), {"params": {"v": torch.zeros(100)}})


def test_a_dense_form_changes_nothing() -> None:
    upload = Payload({"params": {"w": torch.ones(2)}}, {"examples": 1.0})
    assert Dense().encode(upload) is upload
    assert Dense().decode(upload, {}) is upload


CODINGS: list[Coding] = [Byte(), Sign(), Float()]


@pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: type(coding).__name__)
def test_a_form_of_codes_sends_codes_alone_which_stay_codes(coding: Coding) -> None:
    values = torch.tensor([0.3, -2.0, 0.0, 700.0, math.nan], dtype=torch.float64)
    upload = Payload({"update": {"projected": values}}, {"examples": 4.0, "train_loss": 0.5})
    sent = Codes(coding).encode(upload)
    assert {group: list(named) for group, named in sent.tensors.items()} == {"codes": ["codes"]}
    assert sent.metrics == upload.metrics
    expected = {"codes": {"codes": coding.encode(torch.zeros(5))}}
    received = Codes(coding).decode(sent, expected)
    assert received is sent
    assert flaw(received, expected, 10) is None
    assert torch.equal(received.tensors["codes"]["codes"], coding.encode(values))


@pytest.mark.parametrize("coding", CODINGS[:2], ids=lambda coding: type(coding).__name__)
def test_a_value_that_was_decoded_has_the_code_that_it_came_of(coding: Coding) -> None:
    """A strategy may round a value to a code in its own way: the form then leaves it there."""
    every = torch.arange(256, dtype=torch.uint8)
    known = [
        code for code in every.tolist() if coding.flaw(torch.tensor([code, codes.ZERO], dtype=torch.uint8)) is None
    ]
    mine = torch.tensor(known, dtype=torch.uint8)
    values = coding.decode(mine)
    again = coding.encode(values)
    same = coding.decode(again)
    assert torch.equal(values.isnan(), same.isnan())
    assert torch.equal(values.nan_to_num(0), same.nan_to_num(0))
    assert np.array_equal(coding.integers(mine.numpy().tobytes()), coding.integers(again.numpy().tobytes()))


REFUSED: dict[str, tuple[Coding, Tensor, str]] = {
    "no finite loss in bytes": (Byte(), torch.full((4,), codes.NOTHING, dtype=torch.uint8), "none of its losses"),
    "no finite loss in signs": (Sign(), torch.full((4,), codes.NOTHING, dtype=torch.uint8), "none of its losses"),
    "a magnitude among signs": (Sign(), torch.tensor([codes.ONE, 57, 0, 0]).byte(), "codes that are never sent"),
    "a float beyond the largest": (Float(), torch.tensor([0, 2**30 + 1, 0, 0]).int(), "codes that are never sent"),
    "a float below the least": (Float(), torch.tensor([0, -(2**30) - 1, 0, 0]).int(), "codes that are never sent"),
    "no finite loss in floats": (Float(), torch.full((4,), -(2**31)).int(), "none of its losses"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_codes_that_are_never_sent_are_refused(what: str) -> None:
    coding, sent, reason = REFUSED[what]
    expected = {"codes": {"codes": coding.encode(torch.zeros(4))}}
    with pytest.raises(ValueError, match=reason):
        Codes(coding).decode(Payload({"codes": {"codes": sent}}, {"examples": 1.0}), expected)


Wrong = Callable[[Tensor], dict[str, Any]]
MISSHAPEN: dict[str, Wrong] = {
    "nothing": lambda codes: {},
    "no tensors": lambda codes: {"codes": 3},
    "another name": lambda codes: {"codes": {"other": codes}},
    "too few": lambda codes: {"codes": {"codes": codes[:-1]}},
    "another type": lambda codes: {"codes": {"codes": codes.int() + 1}},
    "sparse": lambda codes: {"codes": {"codes": codes.to_sparse()}},
    "a number": lambda codes: {"codes": {"codes": 7}},
}


@pytest.mark.parametrize("what", MISSHAPEN)
def test_what_has_not_the_form_of_codes_is_left_to_the_check_of_all_uploads(what: str) -> None:
    """Which names it: no coding looks at what is no tensor of codes."""
    expected: dict[str, Tensors] = {"codes": {"codes": Byte().encode(torch.zeros(4))}}
    sent = Payload(MISSHAPEN[what](Byte().encode(torch.ones(4))), {"examples": 1.0})
    assert Codes(Byte()).decode(sent, expected) is sent
    assert flaw(sent, expected, 10)
