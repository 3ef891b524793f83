"""The baselines of personalised learning: each against FedAvg, against training by hand and against worked numbers."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import world
from fedshare import seeds
from fedshare.client import Client, Training
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.experiments.config import build
from fedshare.experiments.config.compose import resolved
from fedshare.network import Purpose, answer
from fedshare.payload import Payload
from fedshare.peft import Full
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Part, Population, Simulation
from fedshare.state import State, digests, pack, unpack
from fedshare.strategies.cfl import CFL, bipartition
from fedshare.strategies.ditto import Ditto
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.fedper import FedPer
from fedshare.strategies.fedrep import FedRep
from fedshare.strategies.finetune import FineTune
from fedshare.strategies.local import Local
from fedshare.strategy import Strategy
from fedshare.tasks import Classification
from fedshare.tensors import Tensors
from fedshare.training.private.privacy import Privacy
from fedshare.training.scratch import Scratch
from optional import extra

HEAD = ("head.*",)
HEAD_NAMES = ["head.weight", "head.bias"]


class Net(nn.Module):
    """A body with a running statistic, and a head. Nothing in it is random."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(world.FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, world.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.head(torch.relu(self.norm(self.body(x))))
        return hidden


class Without(nn.Module):
    """world.Net with a layer called head, and without what mixes examples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(world.FEATURES, 8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, world.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.dropout(torch.relu(self.body(x))))
        return hidden


def population(
    strategy: Strategy,
    local: Sequence[str] = (),
    module: type[nn.Module] = Net,
    shares: list[Part] | None = None,
    **changes: Any,
) -> Population:
    with seeds.scope(0, "model"):
        model, parts = Full(head=None, local=list(local)).tune(module())
    training = Training(**({"optimizer": world.sgd, "epochs": 2, "batch_size": 4} | changes))
    return Population(strategy, Scratch(model, parts=parts), training, shares or world.shares(), 0)


def run(network: Simulation, rounds: int = 3, per_round: int | None = 4) -> list[Round]:
    strategy = network.population.strategy
    schedule = Schedule(rounds=rounds, seed=0, clients_per_round=per_round, evaluate_every=0)
    return list(run_server(strategy, network, world.begin(network.population), schedule))


def ran(strategy: Strategy, rounds: int = 3, per_round: int | None = 4, **keys: Any) -> tuple[State, Simulation]:
    """The server's memory after so many rounds, and the network."""
    network = Simulation(partial(population, strategy, **keys))
    return run(network, rounds, per_round)[-1].state, network


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: Tensors, b: Tensors) -> float:
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in b))


def plain(lr: float) -> Any:
    return partial(torch.optim.SGD, lr=lr)


# FedPer


FEW = ["partition.clients=4", "clients_per_round=3", "client.epochs=1", "rounds=2", "evaluate_every=0"]


def composed(*overrides: str) -> tuple[list[str], Simulation]:
    """The digests of each round of a run from the configs."""
    made = build.population_of(resolved([*FEW, *overrides]))
    network = Simulation(lambda: made)
    return [done.link.digest for done in run(network, 2, 3)], network


def test_fedper_is_fedavg_with_a_head_of_ones_own() -> None:
    links, network = composed("strategy=fedper")
    assert isinstance(network.population.strategy, FedPer)
    assert links == composed("strategy=fedavg", "peft.local=[head.*]")[0] != composed("strategy=fedavg")[0]


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_heads_differ_among_clients_and_never_travel(name: str) -> None:
    _, network = composed(f"strategy={name}")
    scratch = network.population.scratch
    assert scratch.local
    assert all(tensor.startswith("head.") for tensor in scratch.local)
    heads = {digests(memory["local"])[scratch.local[0]] for memory in network.memories.states.values()}
    assert len(heads) == len(network.memories.states) >= 3
    download = Payload({"params": scratch.initial})
    upload = network.exchange(Purpose.TRAIN, 3, {0: download}).answers[0]
    assert not any(tensor.startswith("head.") for tensor in upload.tensors["params"])
    assert len(upload.tensors["params"]) == len(scratch.shared) > 0


def test_the_command_line_chooses_other_personal_layers() -> None:
    assert resolved(["strategy=fedper", "peft.local=[body.*]"]).peft.local == ["body.*"]
    assert resolved(["strategy=fedrep", "peft=bias"]).peft._target_ == "fedshare.peft.Bias"


# FedRep


def test_fedrep_trains_the_head_and_then_the_body_by_hand() -> None:
    here, there = (population(FedRep(head_epochs=3), HEAD) for _ in range(2))
    client = here.client(2, {})
    client.load(client.initial)
    upload = here.strategy.train(client, 2, Payload({"params": client.initial}))

    by_hand = there.client(2, {})
    by_hand.load(by_hand.initial)
    everything = list(there.scratch.parameters)
    start = there.scratch.params(everything)
    for names, epochs in ((HEAD_NAMES, 3), ([name for name in everything if name not in HEAD_NAMES], 2)):
        optimizer = world.sgd([there.scratch.parameters[name] for name in names])
        there.scratch.train()
        for batch in by_hand.batches(2, epochs):
            optimizer.zero_grad()
            by_hand.loss(batch).backward()
            optimizer.step()
    assert not same(start, there.scratch.params(everything))
    assert same(client.params(), by_hand.params())
    assert same(upload.tensors["params"], by_hand.params())
    assert same(client.state["local"], by_hand.params(HEAD_NAMES))


def test_the_body_is_still_while_the_head_is_trained_and_the_other_way_round() -> None:
    seen: list[tuple[Tensors, Tensors]] = []

    class Watched(Client):
        def fit(self, *args: Any, **keys: Any) -> dict[str, float]:
            names = [name for name, _ in self.model.named_parameters()]
            before = self.params(names)
            metrics = super().fit(*args, **keys)
            seen.append((before, self.params(names)))
            self.fitted = [*getattr(self, "fitted", []), metrics["train_loss"]]
            return metrics

    made = population(FedRep(head_epochs=1), HEAD)
    client = Watched(0, 0, made.scratch, made.training, made.shares[0], {})
    client.load(client.initial)
    upload = made.strategy.train(client, 1, Payload({"params": client.initial}))
    moved = [{name for name in before if not torch.equal(before[name], after[name])} for before, after in seen]
    assert moved == [set(HEAD_NAMES), {"body.weight", "body.bias", "norm.weight", "norm.bias"}]
    assert upload.metrics == {"examples": 8.0, "train_loss": client.fitted[1]}


@pytest.mark.parametrize("module", [Net, world.Net])
def test_fedrep_without_a_head_of_ones_own_is_fedavg(module: type[nn.Module]) -> None:
    links = []
    for strategy in (FedRep(), FedAvg()):
        links.append([done.link for done in run(Simulation(partial(population, strategy, module=module)))])
    assert links[0] == links[1]


def test_fedrep_trains_alone_where_nothing_is_shared() -> None:
    state, network = ran(FedRep(head_epochs=2), local=["*"], epochs=1, module=Without)
    assert state["params"] == {}
    assert same(
        network.memories.states[4]["local"],
        ran(FedAvg(), local=["*"], epochs=2, module=Without)[1].memories.states[4]["local"],
    )


# Ditto


@pytest.mark.parametrize("lam", [0.0, 1.0, 7.0])
@pytest.mark.parametrize("local", [(), HEAD])
def test_dittos_global_model_is_fedavgs(lam: float, local: Sequence[str]) -> None:
    """With dropout, too: the global model is trained first, as if there were no other. So is its local part."""
    state, network = ran(Ditto(lam=lam), local=local, module=Without)
    expected, usual = ran(FedAvg(), local=local, module=Without)
    assert digests(state) == digests(expected)
    assert network.memories.states.keys() == usual.memories.states.keys()
    for client, memory in usual.memories.states.items():
        kept = {key: value for key, value in network.memories.states[client].items() if key != "personal"}
        assert digests(kept) == digests(memory)


@pytest.mark.parametrize("local", [(), HEAD])
def test_a_personal_model_that_nothing_pulls_is_trained_alone(local: Sequence[str]) -> None:
    """To the bit: on the same batches, from the same start, with a local part that the other's does not touch."""
    _, network = ran(Ditto(lam=0.0), per_round=None, local=local)
    _, alone = ran(Local(), per_round=None, local=local)
    assert network.memories.states.keys() == alone.memories.states.keys()
    for client, memory in alone.memories.states.items():
        assert same(network.memories.states[client]["personal"], memory["params"] | memory.get("local", {}))
        if local:
            assert not same(network.memories.states[client]["local"], memory["local"])


def test_a_strong_pull_holds_the_personal_model_near_the_global_one() -> None:
    """Each step of lr 0.1 goes 0.1 * lam of the way back."""
    far = []
    for lam in (0.0, 1.0, 9.0):
        network = Simulation(partial(population, Ditto(lam=lam), optimizer=plain(0.1)))
        done = run(network, 3, None)
        sent = done[1].state["params"]  # by which the personal models of round 3 are held
        parameters = {name: sent[name] for name in network.population.scratch.trainable}
        far.append([distance(memory["personal"], parameters) for memory in network.memories.states.values()])
    for none, some, strong in zip(*far, strict=True):
        assert strong < some < none
        assert strong < none / 2


class Bias(nn.Module):
    """Two logits, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_a_personal_step_by_hand() -> None:
    """Gradient softmax(v) - (1, 0), plus lam (v - w); one step of lr 1 a round.

    Round 1: v = w = 0, so v - (-0.5, 0.5) = (0.5, -0.5). Round 2, sent w = (1, 0): the gradient at v is
    (-0.26894, 0.26894), the pull 0.5 * (-0.5, -0.5), so v = (0.5 + 0.26894 + 0.25, -0.5 - 0.26894 + 0.25).
    """
    zeros = Examples(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    made = population(Ditto(lam=0.5), (), Bias, [Part(zeros, zeros)], optimizer=plain(1.0), epochs=1, batch_size=None)
    memory: State = {}
    for round, sent in ((1, [0.0, 0.0]), (2, [1.0, 0.0])):
        download = Payload({"params": {"logits": torch.tensor(sent)}})
        upload = answer(made.strategy, made.client(0, memory), Purpose.TRAIN, round, download)
        if round == 1:
            torch.testing.assert_close(memory["personal"]["logits"], torch.tensor([0.5, -0.5]))
            torch.testing.assert_close(upload.tensors["params"]["logits"], torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(memory["personal"]["logits"], torch.tensor([1.01894, -0.51894]), rtol=0, atol=1e-5)
    # The global model: from (1, 0), where softmax is (0.73106, 0.26894).
    torch.testing.assert_close(upload.tensors["params"]["logits"], torch.tensor([1.26894, -0.26894]), rtol=0, atol=1e-5)


def test_a_personal_model_makes_its_own_number_of_passes() -> None:
    _, network = ran(Ditto(lam=0.0, personal_epochs=3), per_round=None, epochs=1)
    _, alone = ran(Local(), per_round=None, epochs=3)
    for client, memory in alone.memories.states.items():
        assert same(network.memories.states[client]["personal"], memory["params"])


def test_a_client_is_tested_with_its_personal_model_once_it_has_one() -> None:
    state, network = ran(Ditto(lam=1.0), rounds=1, local=HEAD)
    made = network.population
    (absent,) = set(range(world.CLIENTS)) - network.memories.states.keys()
    present = min(network.memories.states)
    download = made.strategy.download(state, 0, Purpose.TRAIN)
    assert download is not None
    tested = network.exchange(Purpose.EVALUATE, 1, dict.fromkeys([absent, present], download)).answers
    for client, params in ((absent, state["params"]), (present, network.memories.states[present]["personal"])):
        by_hand = made.client(client, {})
        by_hand.load(params)
        assert tested[client] == by_hand.evaluate()
    global_model = made.client(present, network.memories.states[present])
    global_model.load(state["params"])
    assert tested[present].tensors["sums"]["loss"] != global_model.evaluate().tensors["sums"]["loss"]


def test_both_of_dittos_fits_are_accounted_for() -> None:
    extra("opacus")
    privacy = Privacy(noise_multiplier=1.0, max_grad_norm=0.5, delta=1e-3)
    made = population(Ditto(), (), Without, sampling="poisson", privacy=privacy, epochs=1)
    memory: State = {}
    upload = answer(made.strategy, made.client(0, memory), Purpose.TRAIN, 1, Payload({"params": made.scratch.initial}))
    assert memory["privacy"] == {"steps": 4}
    assert upload.metrics == {"examples": 8.0, "max_epsilon": privacy.epsilon(4, 0.5)}


# Fine-tuning


def test_what_fine_tuning_trains_is_fedavgs() -> None:
    for local in ((), HEAD):
        done = [run(Simulation(partial(population, strategy, local))) for strategy in (FineTune(), FedAvg())]
        assert [round.link for round in done[0]] == [round.link for round in done[1]]


@pytest.mark.parametrize("local", [(), HEAD])
def test_a_test_is_that_of_the_model_fine_tuned_by_hand(local: Sequence[str]) -> None:
    state, network = ran(FineTune(finetune_epochs=3), local=local, module=Without, lr_decay=0.5)
    download = Payload({"params": state["params"]})
    tested = network.exchange(Purpose.EVALUATE, 3, dict.fromkeys(range(world.CLIENTS), download)).answers
    usual = Simulation(partial(population, FedAvg(), local, Without))
    usual.memories.recall(network.memories.remember(), 3)
    untuned = usual.exchange(Purpose.EVALUATE, 3, dict.fromkeys(range(world.CLIENTS), download)).answers
    for client in range(world.CLIENTS):
        made = population(FedAvg(), local, Without)
        by_hand = made.client(client, unpack(pack(network.memories.states.get(client, {}))))
        by_hand.load(state["params"])
        optimizer = world.sgd(made.scratch.parameters.values(), lr=0.1 * 0.5**2)
        with seeds.scope(0, "evaluate", 3, client):  # dropout
            made.scratch.train()
            for batch in by_hand.batches(3, 3):
                optimizer.zero_grad()
                by_hand.loss(batch).backward()
                optimizer.step()
        assert tested[client] == by_hand.evaluate()
        assert tested[client].tensors["sums"]["loss"] != untuned[client].tensors["sums"]["loss"]


def test_no_passes_of_fine_tuning_are_fedavg() -> None:
    schedule = Schedule(rounds=2, seed=0, evaluate_first=True)
    rows = []
    for strategy in (FineTune(finetune_epochs=0), FedAvg()):
        network = Simulation(partial(population, strategy, HEAD))
        state = world.begin(network.population)
        rounds = list(run_server(strategy, network, state, schedule))
        rows.append([{key: value for key, value in done.row.items() if key != "seconds"} for done in rounds])
    assert rows[0] == rows[1]
    assert "before" in rows[0][0]


@pytest.mark.parametrize("private", [False, True])
def test_fine_tuning_is_forgotten_and_is_the_same_again(private: bool) -> None:
    keys: dict[str, Any] = {}
    if private:
        extra("opacus")
        keys = {"sampling": "poisson", "privacy": Privacy(noise_multiplier=1.0, max_grad_norm=0.5, delta=1e-3)}
    state, network = ran(FineTune(), rounds=1, local=HEAD, module=Without, **keys)
    (absent,) = set(range(world.CLIENTS)) - network.memories.states.keys()
    for id in (absent, min(network.memories.states)):
        memory = network.memories.states.get(id, {})  # an absent client's is empty, and must stay so
        parts = dict(memory)
        before = digests(memory)
        models, tests, scratch = [], [], network.population.scratch
        for _ in range(2):
            download = Payload({"params": state["params"]})
            found = network.population.answer(Purpose.EVALUATE, 1, id, download, memory)
            tests.append(found.payload)
            models.append(scratch.params([*scratch.initial, *scratch.local]))
            assert found.state is memory
            assert digests(memory) == before
            assert memory.keys() == parts.keys()
            assert all(memory[key] is parts[key] for key in parts)
        assert same(*models)
        assert tests[0] == tests[1]
        assert not same({name: models[0][name] for name in state["params"]}, state["params"])


def test_the_test_before_round_1_has_the_learning_rate_of_round_1() -> None:
    made = population(FineTune(finetune_epochs=1), batch_size=None, lr_decay=0.5)
    moved = []
    for round in (0, 1, 2):
        client = made.client(0, {})
        client.load(client.initial)
        made.strategy.evaluate(client, round)
        moved.append(client.params()["body.weight"] - client.initial["body.weight"])
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[2], moved[1] / 2, rtol=1e-3, atol=1e-6)


# Clustered federated learning


def uploads(**updates: tuple[float, list[float]]) -> dict[int, Payload]:
    """``c3=(n, [..])``: client 3 has n examples, and uploads that."""
    return {
        int(name[1:]): Payload({"params": {"w": torch.tensor(w)}}, {"examples": n}) for name, (n, w) in updates.items()
    }


def begin(strategy: CFL) -> State:
    return strategy.init({"w": torch.zeros(2)}, world.CLIENTS)


def model(strategy: CFL, state: State, client: int) -> list[float]:
    download = strategy.download(state, client, Purpose.TRAIN)
    assert download is not None
    values: list[float] = download.tensors["params"]["w"].tolist()
    return values


OPPOSITE = uploads(c0=(1, [4.0, 1.0]), c2=(3, [4.0, 0.0]), c3=(2, [-4.0, 0.0]), c7=(2, [-4.0, -0.5]))
"""Mean update: ((4 + 12 - 8 - 8) / 8, (1 - 1) / 8) = (0, 0)."""


def test_opposite_groups_part_each_with_its_own_average() -> None:
    strategy = CFL(eps1=0.4, eps2=1.6, warmup=0)
    state = strategy.aggregate(begin(strategy), 1, OPPOSITE)
    assert strategy.report(state) == {"clusters": [[0, 2], [3, 7]]}
    assert model(strategy, state, 0) == model(strategy, state, 2) == [4.0, 0.25]
    assert model(strategy, state, 3) == model(strategy, state, 7) == [-4.0, -0.25]
    assert state["params"]["w"].tolist() == [0.0, 0.0]

    alike = CFL(eps1=2.0, eps2=1.6, warmup=0, weighted=False)
    assert model(alike, alike.aggregate(begin(alike), 1, OPPOSITE), 2) == [4.0, 0.5]


@pytest.mark.parametrize(
    ("keys", "round", "splits"),
    [
        ({"warmup": 4}, 5, True),
        ({"warmup": 5}, 5, False),
        ({"eps2": 4.1}, 5, True),  # the longest is sqrt(17) = 4.12
        ({"eps2": 4.2}, 5, False),
        ({"eps1": 0.0}, 5, False),  # below, not at
        ({"eps1": 1e-3}, 5, True),
        ({"weighted": False, "eps1": 0.1}, 5, False),  # its mean is (0, 0.125)
        ({"weighted": False, "eps1": 0.13}, 5, True),
    ],
)
def test_a_cluster_parts_where_its_mean_stands_still_and_its_clients_do_not(
    keys: dict[str, Any], round: int, splits: bool
) -> None:
    strategy = CFL(**({"eps1": 0.4, "eps2": 1.6, "warmup": 0} | keys))
    state = strategy.aggregate(begin(strategy), round, OPPOSITE)
    assert len(strategy.report(state)["clusters"]) == 1 + splits


def test_norms_are_of_updates_and_not_of_models() -> None:
    strategy = CFL(warmup=1)
    state = strategy.aggregate(begin(strategy), 1, uploads(c0=(1, [9.0, 9.0]), c1=(1, [9.0, 9.0])))
    congruent = strategy.aggregate(state, 2, uploads(c0=(1, [10.0, 9.0]), c1=(1, [8.0, 9.0])))
    assert strategy.report(congruent) == {"clusters": [[0, 1]]}, "updates of 1 are not above 1.6"
    moving = strategy.aggregate(state, 2, uploads(c0=(1, [11.0, 10.0]), c1=(1, [7.0, 10.0])))
    assert strategy.report(moving) == {"clusters": [[0, 1]]}, "a mean update of 1 is not below 0.4"
    parted = strategy.aggregate(state, 2, uploads(c0=(1, [11.0, 9.0]), c1=(1, [7.0, 9.0])))
    assert strategy.report(parted) == {"clusters": [[0], [1]]}


def test_one_client_alone_is_no_cluster_to_part() -> None:
    strategy = CFL(eps1=math.inf, eps2=0.0, warmup=0)
    state = strategy.aggregate(begin(strategy), 1, uploads(c3=(1, [1.0, 2.0])))
    assert strategy.report(state) == {"clusters": [[3]]}


def test_directions_count_and_not_lengths_and_what_was_split_stays_as_it_was() -> None:
    """Client 1 is 60 degrees from client 0, with a product of 50, and 30 from client 2, with one of 8.7."""
    strategy = CFL(eps1=math.inf, eps2=0.0, warmup=0)
    answers = uploads(c0=(1, [10.0, 0.0]), c1=(1, [5.0, 8.66]), c2=(1, [0.0, 1.0]))
    state = strategy.aggregate(begin(strategy), 1, answers)
    assert strategy.report(state) == {"clusters": [[0], [1, 2]]}
    assert model(strategy, state, 9) == [0.0, 0.0]


def test_halves_part_again() -> None:
    strategy = CFL(warmup=0)
    state = strategy.aggregate(begin(strategy), 1, OPPOSITE)
    later = uploads(c0=(1, [4.0, 5.25]), c2=(1, [4.0, -4.75]), c3=(2, [-4.0, 0.0]), c7=(2, [-3.0, -0.5]))
    state = strategy.aggregate(state, 2, later)
    assert strategy.report(state) == {"clusters": [[3, 7], [0], [2]]}
    assert [model(strategy, state, c) for c in (0, 2, 3, 7)] == [[4, 5.25], [4, -4.75], [-3.5, -0.25], [-3.5, -0.25]]


def test_the_absent_and_the_new_find_their_half_by_their_next_update() -> None:
    strategy = CFL(warmup=1)
    state = strategy.aggregate(begin(strategy), 1, uploads(c0=(1, [1.0, 1.0]), c1=(1, [1.0, 1.0]), c3=(1, [1.0, 1.0])))
    assert strategy.report(state) == {"clusters": [[0, 1, 3]]}
    # Client 1 is absent when it parts, client 2 is yet to come; both get the model that was split.
    state = strategy.aggregate(state, 2, uploads(c0=(1, [5.0, 1.0]), c3=(1, [-3.0, 1.0])))
    assert strategy.report(state) == {"clusters": [[0], [3]]}
    assert model(strategy, state, 1) == model(strategy, state, 2) == [1.0, 1.0]
    # Client 0's half goes on from its own uploads alone; the two newcomers' updates are (-0.1, 2) and (0.1, 9).
    state = strategy.aggregate(state, 3, uploads(c0=(1, [6.0, 1.0]), c1=(1, [0.9, 3.0]), c2=(1, [1.1, 10.0])))
    assert strategy.report(state) == {"clusters": [[0, 2], [1, 3]]}
    assert [model(strategy, state, client) for client in range(4)] == [[6, 1], [-3, 1], [6, 1], [-3, 1]]
    torch.testing.assert_close(state["params"]["w"], torch.tensor([8 / 3, 14 / 3]), msg="of all that was uploaded")


def test_a_newcomer_goes_down_the_tree_a_branch_a_round() -> None:
    strategy = CFL(warmup=0)
    state = strategy.aggregate(begin(strategy), 1, OPPOSITE)
    state = strategy.aggregate(state, 2, uploads(c0=(1, [4.0, 5.25]), c2=(1, [4.0, -4.75])))
    assert strategy.report(state) == {"clusters": [[3, 7], [0], [2]]}
    assert model(strategy, state, 9) == [0.0, 0.0]
    state = strategy.aggregate(state, 3, uploads(c9=(1, [1.0, 0.0])))
    assert model(strategy, state, 9) == [4.0, 0.25]
    state = strategy.aggregate(state, 4, uploads(c9=(1, [4.0, 0.0])))
    assert strategy.report(state) == {"clusters": [[3, 7], [0], [2, 9]]}


def test_the_bipartition_by_hand() -> None:
    """Angles of 0, 50, 100 and 160 degrees: neighbours are 50, 50 and 60 apart, so 160 is left alone.

    Complete linkage would have joined 0 and 50, and then 100 and 160.
    """
    angles = torch.tensor([0.0, 50.0, 100.0, 160.0]).deg2rad()
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    assert bipartition([2, 3, 5, 8], directions) == [[2, 3, 5], [8]]
    assert bipartition([2, 3, 5, 8], directions.flip(0)) == [[2], [3, 5, 8]]
    assert bipartition([4, 1], directions[:2]) == [[1], [4]]


def test_of_equally_similar_pairs_the_first_is_joined() -> None:
    across = torch.eye(4)
    assert bipartition([0, 1, 2, 3], across) == [[0, 1, 2], [3]]
    assert bipartition([0, 1, 2, 3], torch.zeros(4, 2)) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("seed", range(20))
def test_the_bipartition_is_the_best_of_all(seed: int) -> None:
    count = 3 + seed % 6
    directions = F.normalize(torch.randn(count, 3, generator=seeds.generator("directions", seed)))
    similarity = directions @ directions.T

    def across(half: Sequence[int]) -> float:
        return max(float(similarity[i, j]) for i in half for j in range(count) if j not in half)

    best = min(across(half) for k in range(1, count) for half in itertools.combinations(range(count), k))
    one, other = bipartition(list(range(count)), directions)
    assert sorted(one + other) == list(range(count))
    assert across(one) == best


def planted() -> list[Part]:
    """Six clients; to those of odd numbers, each label is called the next one."""
    shares = []
    for client in range(6):
        random = seeds.generator("planted", client)
        y = torch.arange(24) % world.CLASSES
        x = 0.3 * torch.randn(24, world.FEATURES, generator=random) + torch.eye(world.CLASSES, world.FEATURES)[y] * 3
        y = (y + client % 2) % world.CLASSES
        shares.append(Part(Examples(x[:-6], y[:-6]), Examples(x[-6:], y[-6:])))
    return shares


def quarrel(warmup: int) -> Population:
    strategy = CFL(eps1=0.5, eps2=0.5, warmup=warmup)
    return population(strategy, (), Without, planted(), optimizer=plain(0.5), epochs=2, batch_size=None)


def accuracies(tested: dict[int, Payload]) -> list[float]:
    return [Classification().scores(answer.tensors["sums"])["accuracy"] for answer in tested.values()]


def test_two_planted_groups_are_found_and_each_then_learns_its_own_names() -> None:
    done = run(Simulation(partial(quarrel, 3)), 15, None)
    assert [round.row["clusters"] for round in done[:3]] == [[[0, 1, 2, 3, 4, 5]]] * 3
    assert done[-1].row["clusters"] == [[0, 2, 4], [1, 3, 5]]
    network = Simulation(partial(quarrel, 3))
    strategy = network.population.strategy
    downloads = {client: strategy.download(done[-1].state, client, Purpose.TRAIN) for client in range(6)}
    tested = network.exchange(Purpose.EVALUATE, 15, {i: d for i, d in downloads.items() if d is not None}).answers
    assert min(accuracies(tested)) == 1.0
    everyones = Payload({"params": done[-1].state["params"]})
    together = network.exchange(Purpose.EVALUATE, 15, dict.fromkeys(range(6), everyones)).answers
    assert sum(accuracies(together)) / 6 < 0.8


def test_one_cluster_is_fedavg_to_the_bit() -> None:
    clustered, _ = ran(CFL(eps1=0.0, warmup=0))
    usual, _ = ran(FedAvg())
    assert digests({"params": clustered["params"]}) == digests(usual)
    assert digests(clustered["nodes"][0]) == digests(usual)
    assert len(clustered["nodes"]) == 1


@pytest.mark.process
def test_a_run_with_splits_keeps_the_contract() -> None:
    """Few clients a round, so some are absent at each split: any order, workers, and a stop change no bit."""
    here = Simulation(partial(quarrel, 1))
    whole = run(here, 8, 4)
    assert len(whole[-1].row["clusters"]) > 1
    assert any(len(round.state["places"]) > sum(map(len, round.row["clusters"])) for round in whole), "somebody waits"
    links = [done.link for done in whole]
    strategy = here.population.strategy
    schedule = Schedule(rounds=8, seed=0, clients_per_round=4, evaluate_every=0)
    backwards = world.Reversed(Simulation(partial(quarrel, 1)), {})
    rounds = run_server(strategy, backwards, world.begin(here.population), schedule)
    assert [done.link for done in rounds] == links
    with Simulation(partial(quarrel, 1), workers=2) as parallel:
        assert [done.link for done in run(parallel, 8, 4)] == links
    for stop, done in enumerate(whole[:-1], 1):
        later = Simulation(partial(quarrel, 1))
        rest = run_server(strategy, later, unpack(pack(done.state)), schedule, start=stop, digest=done.link.digest)
        assert [after.link for after in rest] == links[stop:]


@pytest.mark.parametrize(
    ("kind", "keys", "line"),
    [
        (FedRep, {"head_epochs": 0}, "head_epochs must be at least 1, not 0"),
        (Ditto, {"lam": -0.1}, "lam must be at least 0 and finite, not -0.1"),
        (Ditto, {"lam": math.inf}, "lam must be at least 0 and finite, not inf"),
        (Ditto, {"personal_epochs": 0}, "personal_epochs must be at least 1, not 0"),
        (FineTune, {"finetune_epochs": -1}, "finetune_epochs must be at least 0, not -1"),
        (CFL, {"eps1": -1.0}, "eps1 must be at least 0, not -1.0"),
        (CFL, {"eps2": -1.0}, "eps2 must be at least 0, not -1.0"),
        (CFL, {"warmup": -1}, "warmup must be at least 0, not -1"),
    ],
)
def test_impossible_values_are_refused(kind: type[Strategy], keys: dict[str, float], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        kind(**keys)
