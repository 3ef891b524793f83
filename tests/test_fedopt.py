"""FedOpt: the server's optimizer steps along the average change, and is the one of torch."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import world
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.state import State, pack, unpack
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.fedopt import FedOpt
from fedshare.strategy import Strategy

SGD, NESTEROV = partial(torch.optim.SGD, lr=1.0), partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)
ADAM = partial(torch.optim.Adam, lr=0.1, eps=1e-3)
FIRST = {"w": nn.Parameter(torch.tensor([4.0, 1.0], dtype=torch.float64)), "mean": torch.tensor([2.0])}


def uploads(w: list[float], mean: float = 3.0) -> dict[int, Payload]:
    tensors = {"w": torch.tensor(w, dtype=torch.float64), "mean": torch.tensor([mean])}
    return {0: Payload({"params": tensors}, {"examples": 1.0})}


@pytest.mark.parametrize("optimizer", [SGD, NESTEROV, ADAM, partial(torch.optim.Adagrad, lr=0.1)], ids=str)
def test_steps_are_those_of_torch_along_the_change_also_after_a_resume(optimizer: Any) -> None:
    strategy = FedOpt(optimizer=optimizer)
    state: State = strategy.init({name: t.detach() if name == "mean" else t for name, t in FIRST.items()}, 1)
    weight = FIRST["w"].detach().clone().requires_grad_()
    by_hand = optimizer([weight])
    for round, answer in enumerate(([2.0, 1.0], [1.0, 1.5], [0.0, 0.0]), 1):
        weight.grad = weight.detach() - torch.tensor(answer, dtype=torch.float64)
        by_hand.step()
        before = pack(state)
        after = strategy.aggregate(state, round, uploads(answer))
        assert pack(state) == before, "the memory before the round stays as it was"
        state = unpack(pack(after))
        assert torch.equal(state["params"]["w"], weight.detach())
        assert state["params"]["mean"].item() == 3.0, "running statistics are averaged"


def ran(strategy: Strategy) -> list[Round]:
    made = replace(world.build("fedavg"), strategy=strategy)
    state = strategy.init(made.scratch.initial, made.clients)
    return list(run_server(strategy, Simulation(lambda: made), state, Schedule(rounds=3, seed=0, max_examples=100)))


def test_plain_sgd_at_rate_1_is_fedavg() -> None:
    def params(strategy: Strategy) -> dict[str, Tensor]:
        found: dict[str, Tensor] = ran(strategy)[-1].state["params"]
        return found

    ours, theirs = params(FedOpt(optimizer=SGD, weighted=False)), params(FedAvg(weighted=False))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


def test_what_is_no_optimizer_s_is_one_line() -> None:
    with pytest.raises(UserError, match="optimizer: Nesterov momentum requires a momentum"):
        FedOpt(optimizer=partial(torch.optim.SGD, lr=1.0, nesterov=True))
