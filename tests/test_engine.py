"""The batching engine agrees with the plain one, for every strategy."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import world
from fedshare.client import Training
from fedshare.engine.batched import Batched
from fedshare.engine.single import Make, Single
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Population, Simulation
from fedshare.training.scratch import Scratch

each_strategy = pytest.mark.parametrize("name", world.STRATEGIES)
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


def build(name: str, **options: object) -> Population:
    made = world.build(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scratch = Scratch(Steady().double())
    return Population(made.strategy, scratch, Training(optimizer=world.sgd, batch_size=4, **options), world.shares(), 0)


def run(name: str, engine: Make, workers: int = 0, **options: object) -> tuple[list[Round], Simulation]:
    with Simulation(partial(build, name, **options), workers, engine=engine) as network:
        state = world.begin(network.population)
        return list(run_server(network.population.strategy, network, state, ROUNDS)), network


def tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [tensor for item in items for tensor in tensors(item)]


@each_strategy
def test_five_rounds_agree_with_the_plain_engine_to_1e_10(name: str) -> None:
    (plain, one), (batched, other) = (run(name, engine) for engine in (Single, Batched))
    for first, second in zip(plain, batched, strict=True):
        pairs = zip(tensors(first.state), tensors(second.state), strict=True)
        assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10) for a, b in pairs)
        if "train_loss" in first.row:
            assert first.row["train_loss"] == pytest.approx(second.row["train_loss"], abs=1e-6)
    for client, state in one.memories.states.items():
        found = other.memories.states[client]
        pairs = zip(tensors(state), tensors(found), strict=True)
        assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10) for a, b in pairs)
    assert other._playing.reasons == set()
