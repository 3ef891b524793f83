"""Clients that draw another initial model than their server, or take other weights: who is sent it, who is refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")

from test_initial import clones
from test_initial import net as scratch

import world
from fedshare import seeds
from fedshare._proto.payload_pb2 import Attendance, Invitation
from fedshare.attacks import Attack
from fedshare.attacks.liar import Liars
from fedshare.attacks.lies import SignFlip
from fedshare.errors import UserError
from fedshare.experiments.config import build, compose
from fedshare.network import Purpose
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Population, Simulation
from fedshare.training.scratch import Scratch
from fedshare.transport.flower.apps import client_app
from fedshare.transport.flower.inprocess import InProcessGrid
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Participant, Terms

Make = Callable[[], Population]
RUN = bytes(range(8))


def elsewhere(population: Population) -> Population:
    """As it would be on another kind of processor."""
    scratch = population.scratch
    scratch.begin({name: t * (1 + 2**-20) if name != "seen" else t for name, t in clones(scratch.whole).items()})
    return population


def network(make: Make, folder: Path, theirs: Make | None = None) -> tuple[FlowerNetwork, Population, list[str]]:
    app = client_app(lambda run_config, node_config: ("config", theirs() if theirs else elsewhere(make())))
    here, said = make(), list[str]()
    grid = InProcessGrid(app, len(here.shares), {}, {"state-dir": str(folder)})
    net = FlowerNetwork(grid, Terms.of("config", here), RUN, 5, len(here.shares), len(here.shares), say=said.append)
    return net, here, said


def links(population: Population, net: object) -> list:  # type: ignore[type-arg]
    schedule = Schedule(rounds=3, seed=0, max_examples=100, evaluate_every=1)
    start = population.strategy.init(population.scratch.initial, population.clients)
    return [done.link for done in run_server(population.strategy, net, start, schedule)]  # type: ignore[arg-type]


def own_parts(attack: Attack) -> Population:
    made = world.build("fedavg")
    return replace(made, scratch=scratch(), liars=Liars(attack, world.CLIENTS, 0))


POPULATIONS: dict[str, Make] = {name: lambda name=name: world.build(name) for name in world.halves()} | {  # type: ignore[misc]
    "parts of every role": lambda: own_parts(Attack()),
    "an attack": lambda: own_parts(SignFlip(adversaries=2)),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", POPULATIONS)
def test_clients_that_draw_another_model_begin_with_the_server_s(kind: str, tmp_path: Path) -> None:
    make = POPULATIONS[kind]
    assert elsewhere(make()).scratch.fingerprint != make().scratch.fingerprint
    net, here, said = network(make, tmp_path)
    simulation = Simulation(make)
    assert links(here, net) == links(simulation.population, simulation)
    assert said[0] == "client 0 makes another initial model of the same config, and is sent the server's"
    assert len(said) == len(here.shares)
    assert net.refused == {}


def test_a_new_process_of_a_client_has_what_the_old_one_was_sent(tmp_path: Path) -> None:
    make = POPULATIONS["parts of every role"]
    net, here, _ = network(make, tmp_path)
    net.client_ids()
    kept = tmp_path / RUN.hex() / "initial.safetensors"
    whole = kept.read_bytes()
    download = {0: here.strategy.download(world.begin(here), 0, Purpose.TRAIN)}

    def asked() -> str:
        """What stands in the way of an answer by a process that has heard nothing yet; "" where nothing does."""
        net._grid._app = client_app(lambda run_config, node_config: ("config", elsewhere(make())))  # type: ignore[attr-defined]
        exchange = net.exchange(Purpose.TRAIN, 1, download)  # type: ignore[arg-type]
        return "" if exchange.answers else exchange.absent[0]

    assert asked() == ""
    kept.write_bytes(whole[:-9])
    assert asked().startswith(f"{kept} is damaged: ")
    kept.unlink()
    assert asked() == "its config or its initial model is not the server's"
    kept.write_bytes(whole)
    assert asked() == ""


def fewer() -> Population:
    with seeds.scope(0, "model"):
        return replace(world.build("fedavg"), scratch=Scratch(nn.Sequential(nn.Linear(world.FEATURES, world.CLASSES))))


def wider() -> Population:
    class Wider(world.Net):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, world.CLASSES + 1)

    return replace(world.build("fedavg"), scratch=Scratch(Wider()))


def more() -> Population:
    class More(world.Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Parameter(torch.ones(1))

    return replace(world.build("fedavg"), scratch=Scratch(More()))


ANOTHER: dict[Make, str] = {
    fewer: "the server's initial model is another than its config makes here: the model has no first.weight",
    wider: "its config makes here: last.weight is torch.float32 [3, 8], not torch.float32 [4, 8]",
    more: "its initial model has the digest ",
}


@pytest.mark.parametrize("theirs", ANOTHER)
def test_a_client_with_another_kind_of_model_is_refused_in_one_line(theirs: Make, tmp_path: Path) -> None:
    net, *_ = network(lambda: world.build("fedavg"), tmp_path, theirs)
    with pytest.raises(UserError, match="5 clients are waited for, and 0 take part"):
        net.client_ids()
    assert all(ANOTHER[theirs] in reason for reason in net.refused.values())
    assert len(net.refused) == world.CLIENTS
    assert not list(tmp_path.iterdir()), "nothing of a model that is not taken is kept"


def test_a_client_that_never_takes_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Attendance(client=0, examples=1, needs_initial=True)
    monkeypatch.setattr(Participant, "begin", lambda *_: again)
    net, _, _ = network(lambda: world.build("fedavg"), tmp_path)
    with pytest.raises(UserError, match="it does not take the server's initial model"):
        net.client_ids()


# Weights, which are compared by themselves


def tiny(weights: Path | None, classes: int = 10) -> Population:
    overrides = ["model=mlp", "model.hidden=[8]", "partition.clients=3", "peft=head", "strategy=fedpeft"]
    return build.population_of(compose.resolved([*overrides, f"weights={weights or 'null'}"]))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Weights: the same twice, one with another bit, one with another head, of which nothing is taken."""
    tensors = clones(tiny(None).scratch.whole)
    tensors |= {"head.weight": torch.ones(3, 8), "head.bias": torch.ones(3)}
    other, head = clones(tensors), clones(tensors)
    other["layers.0.bias"][3] *= 1 + 2**-20
    head["head.bias"] += 1
    kinds = {"a": tensors, "same": clones(tensors), "other": other, "head": head}
    for name, values in kinds.items():
        save_file(values, tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in kinds}


def attend(mine: Path | None, theirs: Path | None, folder: Path) -> Attendance:
    server, client = Terms.of("config", tiny(theirs)), elsewhere_drawn(tiny(mine))
    return Participant(client, Terms.of("config", client), folder).attend(0, server.invitation())


def elsewhere_drawn(population: Population) -> Population:
    """Another kind of processor draws the head otherwise; what a file gives is the same everywhere."""
    name = "head.weight"
    population.scratch.begin({name: population.scratch.whole[name] * (1 + 2**-20)})
    return population


@pytest.mark.parametrize("mine", ["a", "same", "head"])
def test_who_takes_the_same_of_its_weights_is_sent_the_rest(mine: str, files: dict[str, Path], tmp_path: Path) -> None:
    assert attend(files[mine], files["a"], tmp_path).needs_initial
    server, client = tiny(files["a"]), elsewhere_drawn(tiny(files[mine]))
    assert server.drawn().keys() == {"head.weight", "head.bias"}, "and no more travels"
    client.scratch.begin(server.drawn())
    assert Terms.of("config", client) == Terms.of("config", server)


REFUSED = {
    (
        "other",
        "a",
    ): r"it starts from weights=\S+other\.safetensors with the digest \w{12}, the server from those with \w{12}",
    (None, "a"): r"it starts from no weights, the server from those with \w{12}",
    ("a", None): r"it starts from weights=\S+a\.safetensors with the digest \w{12}, the server from none",
}


@pytest.mark.parametrize("case", REFUSED)
def test_who_takes_something_else_of_its_weights_is_refused(
    case: tuple[str | None, str | None], files: dict[str, Path], tmp_path: Path
) -> None:
    mine, theirs = (name and files[name] for name in case)
    with pytest.raises(UserError) as refused:
        attend(mine, theirs, tmp_path)  # type: ignore[arg-type]
    assert re.fullmatch(REFUSED[case], str(refused.value))


def test_the_config_comes_first_and_a_version_before_it(tmp_path: Path) -> None:
    here = tiny(None)
    who = Participant(here, Terms.of("config", here), tmp_path)
    with pytest.raises(UserError, match=r"it runs fedshare .*, the server fedshare 9"):
        who.attend(0, Invitation(version="9"))
    invitation = Terms.of("another", elsewhere_drawn(tiny(None))).invitation()
    with pytest.raises(UserError, match=r"^its config has the digest \w{12}, the server's \w{12}$"):
        who.attend(0, invitation)
    with pytest.raises(UserError, match="there are 3 clients, so there is no client 3"):
        who.attend(3, who.terms.invitation())
