"""The batching engine agrees with the plain one, for every strategy."""

from collections.abc import Container, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import world
from fedshare import seeds
from fedshare.client import Client, Training
from fedshare.engine import graphs
from fedshare.engine.batched import Batched
from fedshare.engine.single import Make, Single
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Population, Simulation
from fedshare.tasks import Classification
from fedshare.training.parts import Parts, Role
from fedshare.training.scratch import Scratch


def long_but(quick: Container[str], values: Iterable[str]) -> list[Any]:
    """Return the values as parameters of which only those in `quick` are not marked as long."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.long) for value in values]


each_strategy = pytest.mark.parametrize("name", long_but(("fedavg", "ditto", "onebyte"), world.STRATEGIES))
ROUNDS = Schedule(rounds=5, seed=0, clients_per_round=4, max_examples=100)


class Steady(nn.Module):
    """A model without running statistics, in float64."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(world.FEATURES, 8), nn.Linear(8, world.CLASSES)
        self.dropouts = nn.Dropout(dropout), nn.Dropout(dropout / 2)
        self.norm = nn.LayerNorm(8)
        for number, dropout_ in enumerate(self.dropouts):
            self.add_module(f"dropout{number}", dropout_)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropouts[0](torch.relu(self.norm(self.first(x.double()))))
        found: Tensor = self.dropouts[1](self.last(hidden))
        return found


def build(name: str, device: str = "cpu", **options: object) -> Population:
    made = world.build(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scratch = Scratch(Steady().double(), device)
    training = Training(**{"optimizer": world.sgd, "batch_size": 4} | options)  # type: ignore[arg-type]
    return Population(made.strategy, scratch, training, world.shares(), 0)


def run(name: str, engine: Make, workers: int = 0, **options: object) -> tuple[list[Round], Simulation]:
    with Simulation(partial(build, name, **options), workers, engine=engine) as network:
        state = world.begin(network.population)
        return list(run_server(network.population.strategy, network, state, ROUNDS)), network


def tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for item in items for tensor in tensors(item)]


def close(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == (pytest.approx(b, rel=1e-6, abs=1e-6) if isinstance(b, float) else b)


@each_strategy
def test_five_rounds_agree_with_the_plain_engine_to_1e_10(name: str) -> None:
    agree(name)


def test_plain_sgd_agrees_too_which_never_computes_the_gradient_of_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    factored = []
    usual = graphs.Graph.__call__

    def watched(graph: graphs.Graph, *values: Any) -> list[graphs.Result]:
        results = usual(graph, *values)
        factored.append(sum(isinstance(result, graphs.Product) for result in results))
        return results

    monkeypatch.setattr(graphs.Graph, "__call__", watched)
    agree("fedcac", optimizer=OPTIMIZERS["sgd"])
    assert factored.count(2) > 20, "both layers' weights, in each step"


def agree(name: str, **options: object) -> None:
    (plain, one), (batched, other) = (run(name, engine, **options) for engine in (Single, Batched))
    for first, second in zip(plain, batched, strict=True):
        pairs = zip(tensors(first.state), tensors(second.state), strict=True)
        assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10) for a, b in pairs)
        for key in first.row.keys() - {"seconds", "digest"}:
            assert close(first.row[key], second.row[key]), key
    for client, state in one.memories.states.items():
        found = other.memories.states[client]
        pairs = zip(tensors(state), tensors(found), strict=True)
        assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10) for a, b in pairs)
    assert other.reasons == set()


class Fits(world.strategy("fedavg").__class__):  # type: ignore[misc]
    """FedAvg whose clients ask for what a fit can have."""

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        sent = client.params()
        pull = {name: tensor + 0.1 for name, tensor in sent.items()}
        control = {name: torch.full_like(tensor, 0.01 * client.id) for name, tensor in sent.items()}
        metrics = client.fit(
            round, ["first.weight", "last.bias"], epochs=1.5, toward=pull, pull=0.3, correction=control
        )
        middle = client.params()
        client.vector.mul_(0.99)  # in place, between two fits
        client.fit(round, keep_local=False)
        client.state["middle"] = middle
        return Payload({"params": client.params()}, metrics)


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
    "nadam": partial(torch.optim.NAdam, lr=0.01),
    "radam": partial(torch.optim.RAdam, lr=0.01),
    "adadelta": partial(torch.optim.Adadelta),
    "adamax": partial(torch.optim.Adamax, lr=0.01),
}


def fitted(optimizer: Any, options: dict[str, Any], task: Any = None, local: tuple[str, ...] = ()) -> Population:
    made = build("fedavg")
    module = Steady().double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeds.generator("fitted", number)))
    parts = Parts.of(module)
    roles = {**parts.roles, **dict.fromkeys(local, Role.LOCAL), "norm.bias": Role.FROZEN}
    scratch = Scratch(module, parts=replace(parts, roles=roles))
    training = Training(optimizer=optimizer, lr_decay=0.9, **options)
    return replace(made, strategy=Fits(), scratch=scratch, training=training, task=task or made.task)


@pytest.mark.parametrize("optimizer", long_but(("sgd", "adam"), OPTIMIZERS))
def test_each_optimizer_takes_the_plain_engine_s_steps_whatever_a_fit_asks_for(optimizer: str) -> None:
    check(OPTIMIZERS[optimizer], {"clip_norm": 0.5})


MORE_SIZES: list[dict[str, Any]] = [
    {"last_batch": "drop"},
    {"batch_size": 1},
    {"epochs": 2.5},
    {"steps": 7},
    {"flat": False},
]


@pytest.mark.parametrize(
    "options",
    [
        {"last_batch": "keep"},
        {"batch_size": None},
        *(pytest.param(options, marks=pytest.mark.long) for options in MORE_SIZES),
    ],
    ids=str,
)
def test_batches_of_any_sizes_are_those_of_the_plain_engine(options: dict[str, Any]) -> None:
    check(OPTIMIZERS["momentum"], options)


def test_a_user_s_own_mean_is_not_padded() -> None:
    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - torch.eye(world.CLASSES)[targets]).square().mean()

    check(OPTIMIZERS["sgd"], {}, Classification(loss=squared))


def test_local_parts_stay_each_client_s_own() -> None:
    check(OPTIMIZERS["adamw"], {}, local=("last.weight", "last.bias"))


def check(optimizer: Any, options: dict[str, Any], task: Any = None, local: tuple[str, ...] = ()) -> None:
    """Two rounds of all clients give the plain engine's uploads, memories and losses to 1e-10."""
    found = []
    for engine in (Single, Batched):
        with Simulation(partial(fitted, optimizer, {"batch_size": 4} | options, task, local), engine=engine) as network:
            params = network.population.strategy.init(network.population.scratch.initial, 5)
            for round in (1, 2):
                downloads = {client: Payload(params) for client in range(5)}  # type: ignore[arg-type]
                exchange = network.exchange(Purpose.TRAIN, round, downloads)
                assert not exchange.absent
                sent = [answer.tensors for answer in exchange.answers.values()]
                found.append((sent, network.memories.states, [a.metrics for a in exchange.answers.values()]))
            assert network.reasons == set()
    for (sent, memories, metrics), (other, others, same) in zip(found[:2], found[2:], strict=True):
        assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(tensors(sent), tensors(other), strict=True))
        pairs = zip(tensors(memories), tensors(others), strict=True)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in pairs)
        assert [pytest.approx(each, abs=1e-6) for each in metrics] == same
