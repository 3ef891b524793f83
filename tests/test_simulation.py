"""Worker processes: the same bits as in this process, and what happens when one of them fails."""

import os
import re
import signal
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

import forked
import world
from fedshare.client import Client
from fedshare.errors import RunHalted
from fedshare.machine import threads
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.rounds import Schedule, run_server
from fedshare.rounds.chain import Link
from fedshare.simulation import Population, Simulation, worker
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg
from fedshare.training.scratch import Scratch

SCHEDULE = Schedule(rounds=2, seed=0, clients_per_round=4)


def links(network: Simulation) -> list[Link]:
    strategy = network.population.strategy
    state = world.begin(network.population)
    return [done.link for done in run_server(strategy, network, state, SCHEDULE)]


@pytest.mark.process
def test_fedavg_has_the_same_bits_twice_and_with_1_2_and_4_workers() -> None:
    build = partial(world.build, "fedavg")
    expected = links(Simulation(build))
    assert links(Simulation(build)) == expected
    for count in (1, 2, 4):
        with forked.cold() if count == 1 else nullcontext(), Simulation(build, count) as network:
            assert links(network) == expected
            assert links(network) == expected, "workers carry nothing over from run to run"


def test_another_seed_gives_other_bits() -> None:
    assert (
        links(Simulation(partial(world.build, "fedavg")))[-1]
        != links(Simulation(partial(world.build, "fedavg", 1)))[-1]
    )


@dataclass(frozen=True)
class Troubled(FedAvg):
    """Client 2 does something bad when it trains; once, where `mark` is a file that tells it that it already has."""

    trouble: str = "raise"
    mark: str = ""

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        if client.id == 2 and not (self.mark and Path(self.mark).exists()):
            if self.mark:
                Path(self.mark).touch()
            if self.trouble == "raise":
                raise ValueError("no such luck")
            if self.trouble == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        return super().train(client, round, download)


def troubled(trouble: str, mark: str = "") -> Population:
    usual = world.build("fedavg")
    return replace(usual, strategy=Troubled(trouble=trouble, mark=mark))


ALL = Schedule(rounds=1, seed=0)


def run(network: Simulation) -> list[Link]:
    strategy = network.population.strategy
    state = world.begin(network.population)
    return [done.link for done in run_server(strategy, network, state, ALL)]


@pytest.mark.process
def test_a_worker_that_dies_is_replaced_and_its_client_done_again(tmp_path: Path) -> None:
    with Simulation(partial(troubled, "die", str(tmp_path / "mark")), workers=2) as network:
        after_death = run(network)
        assert run(network) == after_death == run(Simulation(partial(world.build, "fedavg")))
    assert (tmp_path / "mark").exists()


@pytest.mark.process
def test_a_client_that_kills_every_worker_halts_the_run() -> None:
    with (
        Simulation(partial(troubled, "die"), workers=1) as network,
        pytest.raises(RunHalted, match=r"round 1: client 2: train: its worker process died 2 times \(killed"),
    ):
        run(network)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_client_that_raises_is_named_and_its_trace_is_logged(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        Simulation(partial(troubled, "raise"), workers) as network,
        pytest.raises(
            RunHalted,
            match=r"round 1: client 2: train: raised ValueError: no such luck \(test_simulation.py, line \d+\)$",
        ),
    ):
        run(network)
    assert re.search(r"Traceback (?s:.*)in train\n(?s:.*)ValueError: no such luck\n", caplog.text)


@pytest.mark.process
def test_a_client_that_hangs_meets_a_deadline() -> None:
    with (
        Simulation(partial(troubled, "hang"), workers=1, timeout=10.0) as network,
        pytest.raises(RunHalted, match="round 1: client 2: train: no answer from its worker in timeout=10 s"),
    ):
        run(network)


def fails_in_a_worker(parent: int) -> Population:
    if os.getpid() != parent:
        raise OSError("no data here")
    return world.build("fedavg")


@pytest.mark.process
def test_a_worker_that_cannot_start_says_why() -> None:
    with (
        Simulation(partial(fails_in_a_worker, os.getpid()), workers=1) as network,
        pytest.raises(RunHalted, match="could not start: OSError: no data here"),
    ):
        run(network)


@dataclass(frozen=True)
class Messy(FedAvg):
    """Leaves the model in every state that a strategy is free to leave it in, and depends on all of them."""

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        batch = next(client.batches(round))
        probe = client.loss(batch)  # in the mode, and with the dropout, that it finds
        probe.backward()
        slope = float(sum(p.grad.norm() for p in client.model.parameters() if p.grad is not None))
        client.fit(round, names=["last.weight", "last.bias"])
        metrics = client.fit(round)
        upload = Payload({"params": client.params()}, metrics | {"probe": float(probe.detach()), "slope": slope})
        if client.id % 2:
            client.model.zero_grad()
            client.model.train()
            client.model.first.requires_grad_(False)
            client.model.seen = torch.ones(world.FEATURES)
            client.model.last.weight.data = torch.zeros(world.CLASSES, 8)
        client.state = {} if client.state else {"trained": round, "probe": float(probe.detach())}
        return upload


def messy(order: list[int] | None = None) -> Population:
    return replace(world.build("fedavg"), strategy=Messy())


@pytest.mark.process
def test_nothing_a_strategy_does_to_the_model_reaches_the_next_client() -> None:
    def rows(network: Simulation, visits: list[int] | None = None) -> list[tuple[Link, dict[str, float]]]:
        strategy = network.population.strategy
        run = run_server(strategy, network, world.begin(network.population), Schedule(rounds=3, seed=0))
        return [(done.link, {name: done.row[name] for name in ("probe", "slope", "train_loss")}) for done in run]

    usual, other = Simulation(messy), Simulation(messy)
    other._sizes = usual._sizes[::-1]
    visited: list[list[int]] = [[], []]
    for network, visits in zip((usual, other), visited, strict=True):
        answer = network.population.answer
        seen = replace(network.population, strategy=Messy())
        object.__setattr__(
            seen, "answer", lambda *a, answer=answer, visits=visits: (visits.append(a[2]), answer(*a))[1]
        )
        network.population = seen
    expected = rows(usual)
    assert rows(other) == expected
    assert visited[0] != visited[1]
    assert visited[0][:5] == visited[1][:5][::-1]
    with Simulation(messy, workers=2) as parallel:
        assert rows(parallel) == expected


@pytest.mark.process
def test_after_an_error_no_old_answer_is_given_to_a_new_question() -> None:
    with Simulation(partial(troubled, "raise"), workers=2) as network:
        with pytest.raises(RunHalted, match="no such luck"):
            run(network)
        with pytest.raises(RuntimeError, match="closed, or ended with an error"):
            run(network)


@dataclass(frozen=True)
class Renamed(FedAvg):
    """Two downloads of the same tensors under other names."""

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload:
        names = ["a", "b"] if client_id else ["b", "a"]
        return Payload({"params": state["params"], "pair": dict(zip(names, [ONE, TWO], strict=True))})

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        return super().train(client, round, download)

    def apply(self, client: Client, download: Payload) -> None:
        super().apply(client, download)
        client.state["a"] = float(download.tensors["pair"]["a"])  # a test may break the rule that apply writes nothing


ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


def renamed() -> Population:
    return replace(world.build("fedavg"), strategy=Renamed())


@pytest.mark.process
def test_a_worker_does_not_mistake_one_download_for_another() -> None:
    with Simulation(renamed, workers=1) as network:
        run(network)
        assert [network.memories.states[client]["a"] for client in range(world.CLIENTS)] == [2.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.process
def test_a_stopped_worker_meets_the_deadline_in_the_middle_of_a_message() -> None:
    with Simulation(partial(world.build, "fedavg"), workers=1, timeout=10.0) as network:
        run(network)
        assert network._workers
        os.kill(network._workers._workers[0].process.pid or 0, signal.SIGSTOP)
        big = {"w": torch.zeros(10_000_000)}  # beyond what a pipe holds
        with pytest.raises(RunHalted, match="no answer from its worker in timeout=10 s"):
            network.exchange(Purpose.TRAIN, 1, {0: Payload({"params": big})})


@pytest.mark.process
def test_there_are_no_more_workers_than_clients() -> None:
    with Simulation(partial(world.build, "fedavg", parts=world.shares(2)), workers=1000) as network:
        run(network)
        assert network._workers
        assert len(network._workers._workers) == 2


@pytest.mark.process
def test_busy_workers_are_ended_together(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, float]] = []
    stop, end = worker.Worker.stop, worker.Worker.end
    monkeypatch.setattr(worker.Worker, "stop", lambda self: (steps.append(("asked", 0)), stop(self)))
    monkeypatch.setattr(worker.Worker, "end", lambda self, until: (steps.append(("ended", until)), end(self, until)))
    network = Simulation(partial(troubled, "hang"), workers=3, timeout=1.0)
    with pytest.raises(RunHalted, match="no answer"):
        run(network)
    assert network._workers
    assert not network._workers._workers
    assert [step for step, _ in steps] == ["asked"] * 3 + ["ended"] * 3
    assert len({until for step, until in steps if step == "ended"}) == 1  # they share one grace


def test_a_scratch_of_two_types_is_refused() -> None:
    net = world.Net()
    net.last.double()
    with pytest.raises(Exception, match=r"one type, not \['torch.float32', 'torch.float64'\]"):
        Scratch(net)


def test_spread_keeps_the_order_uses_one_thread_each_and_passes_on_what_is_raised() -> None:
    before = torch.get_num_threads()
    assert threads.spread(lambda item: (item, torch.get_num_threads()), range(20)) == [(item, 1) for item in range(20)]
    with pytest.raises(ZeroDivisionError):
        threads.spread(lambda item: 1 // item, [1, 0])
    assert torch.get_num_threads() == before
