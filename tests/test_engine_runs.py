"""Runs under the batching engine: the same bits on any number of workers and after a kill, and what falls back."""

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_attacks
import test_peft
import torch
from test_engine import build, close, long_but
from torch import Tensor, nn

import forked
import world
from fedshare.attacks.liar import Liars
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.engine.batched import FEW, Batched
from fedshare.engine.single import Make, Single
from fedshare.experiments import cli
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.rounds import Round, Schedule, run_server
from fedshare.runs import checkpoint
from fedshare.simulation import Population, Simulation, choice
from fedshare.simulation.effort import Effort
from fedshare.simulation.jobs import divided
from fedshare.training.scratch import Scratch

BATCHED = [
    *("engine=batched", "strategy=local", "data=digits", "model=mlp", "rounds=4", "checkpoint_every=2"),
    "partition.clients=40",
]


def many(strategy: str) -> Population:
    return replace(build(strategy), shares=world.shares(2 * FEW))


def rounds(make: Callable[[], Population], engine: Make, workers: int = 0) -> tuple[list[Round], Simulation]:
    with Simulation(make, workers, engine=engine) as network:
        state = world.begin(network.population)
        schedule = Schedule(rounds=2, seed=0, max_examples=200)
        return list(run_server(network.population.strategy, network, state, schedule)), network


@pytest.mark.process
@pytest.mark.parametrize(("strategy", "numbers"), [("fedavg", (0, 1, 4)), ("ditto", (0, 2)), ("fedcac", (0, 3))])
def test_the_bits_do_not_depend_on_the_number_of_workers(strategy: str, numbers: tuple[int, ...]) -> None:
    runs = [rounds(partial(many, strategy), Batched, workers)[0] for workers in numbers]
    assert all([done.link for done in run] == [done.link for done in runs[0]] for run in runs)


def test_groups_depend_on_the_clients_alone() -> None:
    jobs: Any = [object() for _ in range(2 * FEW + 1)]
    assert [len(some) for some in divided(jobs, 1000, FEW)] == [FEW, FEW + 1]
    assert [len(some) for some in divided(jobs, 5, FEW)] == [4, 5, 5, 4, 5, 5, 5]
    assert [len(some) for some in divided(jobs, 1, FEW)] == [1] * len(jobs)
    assert divided([], 4, FEW) == []


@pytest.mark.process
def test_kill_9_then_resume_gives_the_same_bits(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    program = (
        "import os, signal, sys\n"
        "from fedshare.experiments.cli import main\n"
        "from fedshare.strategies.local import Local\n"
        "train = Local.train\n"
        "def fatal(self, client, round, download):\n"
        "    upload = train(self, client, round, download)\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if round == 3 else upload\n"
        "Local.train = fatal\n"
        "main(sys.argv[1:])"
    )
    ended = forked.run("-c", program, "run", f"folder={killed}", "workers=0", *BATCHED, timeout=world.PATIENCE)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert checkpoint.rounds(killed / "checkpoints") == [2]
    assert fedshare("resume", str(killed)) == 0
    assert fedshare("run", f"folder={whole}", "workers=2", *BATCHED) == 0
    assert fedshare("verify", str(whole), str(killed)) == 0


def test_verify_says_first_that_the_engines_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {engine: tmp_path / engine for engine in ("plain", "batched")}
    for engine, folder in folders.items():
        assert fedshare("run", f"folder={folder}", "workers=0", *BATCHED, f"engine={engine}", "rounds=1") == 0
    capsys.readouterr()
    assert fedshare("verify", *map(str, folders.values())) == 1
    said = capsys.readouterr().out
    assert said.startswith("other engines (engine: plain | engine: batched), so other bits: differ first in round 1")


def test_auto_is_resolved_once_printed_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["workers=0", "data=digits", "model=logistic", "rounds=1", "partition.clients=40", "clients_per_round=40"]
    assert fedshare("run", f"folder={tmp_path / 'small'}", *small) == 0
    assert "\nengine: plain\n" in (tmp_path / "small" / "config.yaml").read_text()
    assert "engine=" not in capsys.readouterr().out, "a small run is no matter for engines"
    assert fedshare("run", f"folder={tmp_path / 'long'}", *small, "client.epochs=400") == 0
    assert "\nengine: batched\n" in (tmp_path / "long" / "config.yaml").read_text()
    assert "engine=batched: 63,600 steps, 1e+09 multiply-adds; 40 clients at once\n" in capsys.readouterr().out


def test_auto_goes_by_sizes() -> None:
    made = many("fedavg")

    def why(steps: int = 60_000, operations: float = 1e6, clients: int | None = None) -> tuple[str, str]:
        return choice.chosen(made, Effort(steps, steps * operations), clients)

    assert why() == ("batched", "60,000 steps, 6e+10 multiply-adds; 32 clients at once")
    assert why(steps=50_000)[0] == why(operations=3.1e7)[0] == why(clients=7)[0] == "plain"
    assert why(clients=8)[0] == why(operations=2.9e7)[0] == "batched"
    assert choice.chosen(FALLS_BACK["optimizer"][0](), Effort(10**6, 1e6), 20)[1].startswith("LBFGS")


@pytest.mark.parametrize(
    ("word", "said"),
    [("engine=batched", "engine=batched: is"), ("cluster=ray", "cluster: is"), ("links=churn", "links: are")],
)
def test_a_deployment_trains_by_the_plain_engine_on_its_own_hosts(
    word: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedshare("server", "--clients", "1", "--insecure", f"folder={tmp_path / 'run'}", word) == 2
    assert f"{said} for simulations" in capsys.readouterr().err


def fedshare(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return ended.value.code


class Mixing(nn.Module):
    """A layer that looks at the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(world.FEATURES, world.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(x - x.mean(0) if self.training else x)
        return found


class Reading(Mixing):
    """A model whose code depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(x if x.sum() > 0 else -x)
        return found


def with_model(module: Callable[[], nn.Module], **options: Any) -> Population:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scratch = Scratch(module())
    training = Training(**{"optimizer": world.sgd, "batch_size": 4} | options)
    return replace(world.build("fedavg"), scratch=scratch, training=training)


FALLS_BACK: dict[str, tuple[Callable[[], Population], str]] = {
    "statistics": (partial(with_model, world.Net), "training changes the model's buffer"),
    "mixing": (partial(with_model, Mixing), "the model mixes the examples of a batch"),
    "control flow": (partial(with_model, Reading), "the model cannot be batched"),
    "optimizer": (
        partial(with_model, Mixing, optimizer=partial(torch.optim.LBFGS, lr=0.1, max_iter=2)),
        "LBFGS does not treat each number on its own",
    ),
    "poisson": (partial(with_model, Mixing, sampling="poisson"), "sampling=poisson"),
}


@pytest.mark.parametrize("case", FALLS_BACK)
def test_what_cannot_be_batched_gets_the_plain_engine_s_bits_and_says_why(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = FALLS_BACK[case]
    (plain, _), (batched, network) = (rounds(make, engine) for engine in (Single, Batched))
    assert [done.state["params"].keys() for done in plain] == [done.state["params"].keys() for done in batched]
    for one, other in zip(plain, batched, strict=True):
        assert all(torch.equal(tensor, other.state["params"][name]) for name, tensor in one.state["params"].items())
    assert any(why.startswith(reason) for why in network.reasons)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("fedshare")]
    assert len([line for line in said if reason in line]) == 1, "once, not each round"
    assert all(len(line) < 300 and "\n" not in line for line in said)


@pytest.mark.process
def test_reasons_come_from_workers_too(caplog: pytest.LogCaptureFixture) -> None:
    _, network = rounds(FALLS_BACK["mixing"][0], Batched, 2)
    assert len(network.reasons) == 1
    assert "the model mixes the examples of a batch" in caplog.text


def with_a_faulty_client() -> Population:
    made = build("fedavg")
    shares = list(made.shares)
    x, y = shares[2].train.x, shares[2].train.y
    shares[2] = shares[2]._replace(train=Examples(x, torch.full_like(y, world.CLASSES)))  # no such class
    return replace(made, shares=shares)


def test_a_client_that_raises_is_dropped_alone() -> None:
    found = []
    for engine in (Single, Batched):
        with Simulation(with_a_faulty_client, engine=engine, on_error="drop") as network:
            params = world.begin(network.population)["params"]
            downloads = {client: Payload({"params": params}) for client in network.client_ids()}
            found.append(network.exchange(Purpose.TRAIN, 1, downloads))
    plain, batched = found
    assert list(plain.absent) == list(batched.absent) == [2]
    assert "raised IndexError" in batched.absent[2]
    for client, answer in plain.answers.items():
        for name, tensor in answer.tensors["params"].items():
            assert torch.equal(batched.answers[client].tensors["params"][name], tensor)
    assert all("out of bounds" in why for why in network.reasons)
    assert network.reasons


def attacked(option: str, strategy: str) -> Population:
    return replace(build(strategy), liars=Liars(test_attacks.attack(option), world.CLIENTS, 0))


@pytest.mark.parametrize("option", long_but(("none", "sign_flip"), test_attacks.OPTIONS))
def test_every_attack_is_batched(option: str) -> None:
    (plain, _), (batched, network) = (
        rounds(partial(attacked, option, "fedavg"), engine) for engine in (Single, Batched)
    )
    for one, other in zip(plain, batched, strict=True):
        assert all(close(one.row[key], other.row[key]) for key in one.row.keys() - {"seconds", "digest"})
    assert network.reasons == set()


PEFT = dict.fromkeys(test_peft.ALL, "") | {
    "prompt": "it applies dropout to something other than a batch",
    "prompt_shallow": "it applies dropout to something other than a batch",
    "loha": "the model cannot be batched: vmap: called random operation",
    "vblora": "the model cannot be batched: vmap: It looks like",
}


@pytest.mark.long
@test_peft.every
def test_every_way_of_fine_tuning_is_batched_or_says_why_not(name: str) -> None:
    make = partial(test_peft.population, name)
    (plain, _), (batched, network) = (rounds(make, engine) for engine in (Single, Batched))
    for one, other in zip(plain, batched, strict=True):
        for tensor, found in zip(one.state["params"].values(), other.state["params"].values(), strict=True):
            torch.testing.assert_close(found, tensor, rtol=0, atol=1e-5)
    assert [why[: len(PEFT[name])] for why in network.reasons] == [PEFT[name]] * bool(PEFT[name])
