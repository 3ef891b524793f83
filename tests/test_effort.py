"""A small run stays in one process, by a rule on sizes."""

from typing import Any

import pytest
from torch import nn

from fedshare.experiments.config import build, compose
from fedshare.experiments.running import execute
from fedshare.runs import RunFolder
from fedshare.simulation.effort import OPERATIONS, STEPS, Effort, operations


def population(*overrides: str, name: str = "config") -> Any:
    config = compose.resolved(["data=digits", *overrides], name)
    return config, build.simulated(config)


def test_steps_are_those_that_clients_take() -> None:
    config, clients = population("model=logistic", "partition.clients=4", "clients_per_round=2", "client.epochs=3")
    steps = sum(client.steps() for client in (clients.client(id, {}) for id in range(4)))
    assert Effort.of(clients, config.clients_per_round, rounds=10).steps == steps * 2 / 4 * 10


def test_a_weight_counts_for_each_place_where_it_is_applied() -> None:
    _, clients = population("model=logistic", "partition.clients=3")
    assert operations(clients) == 64 * 10 + 10  # at least one for each number of the model
    _, clients = population("model=cnn", "partition.clients=3")
    module = clients.scratch.module
    parts = {name: part for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert operations(clients) > 2 * sum(part.weight.numel() for part in parts.values())
    assert not any(part._forward_hooks for part in module.modules()), "no hook stays"


def test_a_model_that_takes_no_single_example_counts_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    _, clients = population("model=logistic", "partition.clients=3", "rounds=1")
    assert Effort.of(clients, None, 1).small

    def fails(*_: Any) -> None:
        raise ValueError("batches of two at least")

    monkeypatch.setattr(clients.scratch.module, "forward", fails)
    assert not Effort.of(clients, None, 1).small


def test_both_bounds_hold() -> None:
    assert Effort(STEPS, OPERATIONS).small
    assert not Effort(STEPS + 1, 0).small
    assert not Effort(0, OPERATIONS * 1.01).small


@pytest.mark.parametrize(("workers", "expected"), [("null", 0), ("2", 2), ("0", 0)])
def test_the_demo_is_small_and_says_so(
    workers: str, expected: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedshare.machine.devices.cores", lambda: 4)
    config, clients = population(f"workers={workers}", name="demo")
    network = execute.simulation(config, RunFolder(tmp_path), clients)
    assert network.processes == expected
    said = "small run (7,500 steps, 1e+10 multiply-adds): simulated in this process; workers=4 starts 4 others\n"
    assert capsys.readouterr().out == (said if workers == "null" else "")


def test_large_work_takes_a_process_a_core(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedshare.machine.devices.cores", lambda: 4)
    config, clients = population("model=cnn", "rounds=100")
    assert execute.simulation(config, RunFolder(tmp_path), clients).processes == 4
