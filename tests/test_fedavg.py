"""FedAvg against numbers worked out by hand, and against training in one place."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import world
from fedshare import seeds
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.payload import Payload
from fedshare.rounds import Schedule, run_server, sample
from fedshare.simulation import Population, Simulation
from fedshare.training.scratch import Scratch


def uploads(*values: tuple[float, list[float]]) -> dict[int, Payload]:
    return {i: Payload({"params": {"w": torch.tensor(w)}}, {"examples": n}) for i, (n, w) in enumerate(values)}


def test_one_round_by_hand() -> None:
    # Three clients with 1, 2 and 5 examples: (1 * [8, 0] + 2 * [4, 8] + 5 * [0, 16]) / 8 = [2, 12].
    strategy = world.strategy("fedavg")
    state = strategy.init({"w": torch.zeros(2)}, world.CLIENTS)
    answers = uploads((1, [8.0, 0.0]), (2, [4.0, 8.0]), (5, [0.0, 16.0]))
    assert strategy.aggregate(state, 1, answers)["params"]["w"].tolist() == [2.0, 12.0]
    alike = replace(strategy, weighted=False)  # type: ignore[type-var]
    assert alike.aggregate(state, 1, answers)["params"]["w"].tolist() == [4.0, 8.0]


def test_one_client_alone_is_the_average() -> None:
    strategy = world.strategy("fedavg")
    answer = uploads((7, [0.1, -0.3]))
    assert torch.equal(strategy.aggregate({}, 1, answer)["params"]["w"], answer[0].tensors["params"]["w"])


def test_full_participation_with_one_full_batch_is_one_centralised_step() -> None:
    def plain_sgd(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.5)  # type: ignore[arg-type]

    training = Training(optimizer=plain_sgd, epochs=1, batch_size=None)
    with seeds.scope(0, "model"):
        module = nn.Sequential(nn.Linear(world.FEATURES, 8), nn.Tanh(), nn.Linear(8, world.CLASSES))
    population = Population(world.strategy("fedavg"), Scratch(module), training, world.shares(), 0)
    network = Simulation(lambda: population)
    state = population.strategy.init(population.scratch.initial, population.clients)
    *_, last = run_server(population.strategy, network, state, Schedule(rounds=3, seed=0))

    with seeds.scope(0, "model"):
        central = nn.Sequential(nn.Linear(world.FEATURES, 8), nn.Tanh(), nn.Linear(8, world.CLASSES))
    everything = Examples(*(torch.cat([getattr(train, part) for train, *_ in world.shares()]) for part in "xy"))
    optimizer = torch.optim.SGD(central.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(central(everything.x), everything.y).backward()
        optimizer.step()
    for name, parameter in central.named_parameters():
        torch.testing.assert_close(last.state["params"][name], parameter.data, rtol=0, atol=1e-6)


def test_the_flat_step_is_torchs_own_step() -> None:
    """The same client trained by hand, tensor by tensor, with torch's own zero_grad and momentum: the same bits."""
    population = world.build("fedavg")
    client = population.client(3, {})
    client.load(client.initial)
    with seeds.scope("test"):
        client.fit(round=1)

    with seeds.scope(0, "model"):
        module = world.Net()
    optimizer = world.sgd(module.parameters())
    module.train()
    with seeds.scope("test"):
        for inputs, targets in client.batches(1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
    trained = client.params()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(trained[name], tensor), name


def test_fit_moves_only_the_names_given() -> None:
    client = world.build("fedavg").client(0, {})
    client.load(client.initial)
    client.fit(1, names=["first.bias", "last.weight", "last.bias"])
    moved = {name for name, value in client.params().items() if not torch.equal(value, client.initial[name])}
    assert moved == {"first.bias", "last.weight", "last.bias", "norm.running_mean", "norm.running_var", "seen"}


@pytest.mark.parametrize("flat", [True, False])
def test_learning_rate_decays_by_round(flat: bool) -> None:
    def step(round: int, lr_decay: float) -> torch.Tensor:
        training = Training(optimizer=world.sgd, epochs=1, batch_size=None, lr_decay=lr_decay, flat=flat)
        client = world.build("fedavg", training=training).client(0, {})
        client.load(client.initial)
        with seeds.scope("test"):  # dropout
            client.fit(round)
        return client.params()["first.weight"] - client.initial["first.weight"]

    torch.testing.assert_close(step(3, 0.5), step(3, 1.0) * 0.25)


def test_load_refuses_what_would_broadcast_and_what_it_does_not_know() -> None:
    client = world.build("fedavg").client(0, {})
    with pytest.raises(ValueError, match=r"first.bias has shape \[1\], not \[8\]"):
        client.load({"first.bias": torch.ones(1)})
    with pytest.raises(KeyError, match="intruder"):
        client.load({"intruder": torch.ones(1)})


def test_sampling_is_without_replacement_and_moves_with_round_and_seed() -> None:
    everyone = list(range(20))
    chosen = sample(everyone, 5, seed=0, round=1)
    assert chosen == sample(everyone, 5, seed=0, round=1) == sorted(set(chosen))
    assert len({tuple(sample(everyone, 5, seed=s, round=r)) for s in range(3) for r in range(3)}) == 9
    assert sample(everyone, None, 0, 1) == sample(everyone, 99, 0, 1) == everyone
    seen = {client for round in range(40) for client in sample(everyone, 5, 0, round)}
    assert seen == set(everyone)
