"""Worker processes: the same bits as in this process, and what happens when one of them fails."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import world
from fedshare.chain import Link
from fedshare.client import Client, Scratch
from fedshare.errors import RunHalted
from fedshare.payload import Payload
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Population, Simulation
from fedshare.strategies.fedavg import FedAvg

SCHEDULE = Schedule(rounds=2, seed=0, clients_per_round=4)


def links(network: Simulation) -> list[Link]:
    strategy = network.population.strategy
    state = strategy.init(network.population.scratch.initial)
    return [done.link for done in run_server(strategy, network, state, SCHEDULE)]


def test_fedavg_has_the_same_bits_twice_and_with_1_2_and_4_workers() -> None:
    build = partial(world.build, "fedavg")
    expected = links(Simulation(build))
    assert links(Simulation(build)) == expected
    for workers in (1, 2, 4):
        with Simulation(build, workers) as network:
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

    def train(self, client: Client, round: int) -> Payload:
        if client.id == 2 and not (self.mark and Path(self.mark).exists()):
            if self.mark:
                Path(self.mark).touch()
            if self.trouble == "raise":
                raise ValueError("no such luck")
            if self.trouble == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        return super().train(client, round)


def troubled(trouble: str, mark: str = "") -> Population:
    usual = world.build("fedavg")
    return Population(Troubled(trouble=trouble, mark=mark), usual.scratch, usual.shares, usual.seed)


ALL = Schedule(rounds=1, seed=0)


def run(network: Simulation) -> list[Link]:
    strategy = network.population.strategy
    state = strategy.init(network.population.scratch.initial)
    return [done.link for done in run_server(strategy, network, state, ALL)]


def test_a_worker_that_dies_is_replaced_and_its_client_done_again(tmp_path: Path) -> None:
    with Simulation(partial(troubled, "die", str(tmp_path / "mark")), workers=2) as network:
        after_death = run(network)
        assert run(network) == after_death == run(Simulation(partial(world.build, "fedavg")))
    assert (tmp_path / "mark").exists()


def test_a_client_that_kills_every_worker_halts_the_run() -> None:
    with (
        Simulation(partial(troubled, "die"), workers=1) as network,
        pytest.raises(RunHalted, match=r"round 1: client 2: train: its worker process died 2 times \(killed"),
    ):
        run(network)


def test_a_client_that_raises_is_named_with_its_trace() -> None:
    with (
        Simulation(partial(troubled, "raise"), workers=1) as network,
        pytest.raises(RuntimeError, match=r"round 1: client 2: train: ValueError: no such luck\n(?s:.*)in train"),
    ):
        run(network)


def test_a_client_that_hangs_meets_a_deadline() -> None:
    with (
        Simulation(partial(troubled, "hang"), workers=1, timeout=1.0) as network,
        pytest.raises(RunHalted, match="round 1: client 2: train: no answer from its worker after 1 s"),
    ):
        run(network)


def fails_in_a_worker(parent: int) -> Population:
    if os.getpid() != parent:
        raise OSError("no data here")
    return world.build("fedavg")


def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(RunHalted, match="could not start: OSError: no data here"):
        Simulation(partial(fails_in_a_worker, os.getpid()), workers=1)


def test_a_scratch_of_two_types_is_refused() -> None:
    net = world.Net()
    net.last.double()
    with pytest.raises(Exception, match=r"one type, not \['torch.float32', 'torch.float64'\]"):
        Scratch(net, world.build("fedavg").scratch.training)
