"""What every strategy promises. No strategy is named: one that is added to strategies/ is tested by being there."""

import copy
import dataclasses
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch

import world
from fedshare.errors import RunHalted
from fedshare.network import Exchange, Heard, Purpose, Quotas
from fedshare.payload import Payload
from fedshare.rounds import Round, Schedule, run_server, sample
from fedshare.rounds.chain import Link
from fedshare.simulation import Simulation
from fedshare.state import State, digests, pack, unpack
from fedshare.tensors import Tensors

SCHEDULE = Schedule(rounds=3, seed=0, clients_per_round=4, max_examples=100)
each_strategy = pytest.mark.parametrize("name", world.STRATEGIES)


def simulation(name: str, workers: int = 0) -> Simulation:
    return Simulation(partial(world.build, name), workers)


def begin(network: Simulation) -> State:
    return world.begin(network.population)


def run(network: Simulation, schedule: Schedule = SCHEDULE) -> list[Round]:
    return list(run_server(network.population.strategy, network, begin(network), schedule))


@cache
def whole(name: str) -> tuple[list[Link], dict[int, State]]:
    """What each round of an undisturbed run comes to, and what the clients remember in the end."""
    network = simulation(name)
    return [done.link for done in run(network)], network.memories.remember()


@cache
def one_round(name: str) -> tuple[Simulation, State, dict[int, Payload], dict[int, Payload]]:
    """After one whole round: the network, the server's memory, and a second round's downloads and uploads.

    Tests that say that none of it changes share it.
    """
    network = simulation(name)
    state = run(network, dataclasses.replace(SCHEDULE, rounds=1, clients_per_round=None))[-1].state
    strategy = network.population.strategy
    downloads = {i: strategy.download(state, i, Purpose.TRAIN) for i in network.client_ids()}
    known = {i: download for i, download in downloads.items() if download is not None}
    return network, state, known, sent(network, state, 2, known)


def sent(network: Simulation, state: State, round: int, downloads: dict[int, Payload]) -> dict[int, Payload]:
    """The uploads as the server unpacks them."""
    strategy = network.population.strategy
    answers = network.exchange(Purpose.TRAIN, round, downloads).answers
    return {client: strategy.form.decode(upload, strategy.expects(state, client)) for client, upload in answers.items()}


def payload_digests(payload: Payload) -> dict[str, str]:
    return digests({"tensors": payload.tensors, "metrics": payload.metrics})


@each_strategy
def test_yaml_keys_are_the_fields(name: str) -> None:
    strategy = world.strategy(name)
    keys = world.strategy_config(name).keys() - {"_target_"}
    assert keys == {field.name for field in dataclasses.fields(strategy)}  # type: ignore[arg-type]


@each_strategy
def test_aggregate_is_deterministic_and_ignores_the_order_of_uploads(name: str) -> None:
    network, state, _, uploads = one_round(name)
    strategy = network.population.strategy
    before, sent = digests(state), {i: payload_digests(upload) for i, upload in uploads.items()}
    first = digests(strategy.aggregate(state, 2, uploads))
    assert digests(strategy.aggregate(state, 2, uploads)) == first
    assert digests(strategy.aggregate(state, 2, dict(reversed(uploads.items())))) == first
    assert digests(state) == before, "aggregate makes a new state and leaves the old one"
    assert {i: payload_digests(upload) for i, upload in uploads.items()} == sent


@each_strategy
def test_apply_is_idempotent_and_writes_only_the_model(name: str) -> None:
    network, _, downloads, _ = one_round(name)
    population = network.population
    for id, download in downloads.items():
        client = population.client(id, network.memories.states.get(id, {}))
        memory, received = digests(client.state), payload_digests(download)
        initial = digests({"initial": client.initial})
        population.strategy.apply(client, download)
        once = digests({"params": client.params()})
        population.strategy.apply(client, download)
        assert digests({"params": client.params()}) == once
        assert digests(client.state) == memory
        assert payload_digests(download) == received
        assert digests({"initial": client.initial}) == initial


@each_strategy
def test_apply_leaves_nothing_of_another_client_in_the_model(name: str) -> None:
    network, _, downloads, _ = one_round.__wrapped__(name)  # one more round is played
    population = network.population
    first, last = min(downloads), max(downloads)

    def applied(id: int) -> dict[str, str]:
        client = population.client(id, network.memories.states.get(id, {}))
        population.strategy.apply(client, downloads[id])
        return digests(dict(client.model.state_dict()))

    before = applied(first)
    network.exchange(Purpose.TRAIN, 3, {last: downloads[last]})
    assert applied(first) == before


@each_strategy
def test_nothing_on_self_changes(name: str) -> None:
    world.strategy.cache_clear()  # other tests have used that one
    network = simulation(name)
    strategy = network.population.strategy
    before = copy.deepcopy(vars(strategy))
    run(network)
    assert repr(vars(strategy)) == repr(before)  # a partial equals only itself
    for field in dataclasses.fields(strategy):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, field.name, None)


@each_strategy
def test_memories_save_and_load_to_the_same_bits(name: str) -> None:
    links, memories = whole(name)
    stopped = simulation(name)
    part = run(stopped, dataclasses.replace(SCHEDULE, rounds=1))[-1]
    later = simulation(name)
    later.memories.recall({i: unpack(pack(state)) for i, state in stopped.memories.remember().items()}, 1)
    state = unpack(pack(part.state))
    assert digests(state) == digests(part.state)
    rest = run_server(later.population.strategy, later, state, SCHEDULE, start=1, digest=part.link.digest)
    assert [done.link for done in rest] == links[1:]
    mine = later.memories.remember()
    assert {i: digests(s) for i, s in mine.items()} == {i: digests(s) for i, s in memories.items()}


@each_strategy
def test_evaluation_changes_no_memory(name: str) -> None:
    network, _, downloads, _ = one_round(name)
    before = {i: digests(state) for i, state in network.memories.states.items()}
    first = network.exchange(Purpose.EVALUATE, 2, downloads)
    assert network.exchange(Purpose.EVALUATE, 2, downloads) == first
    assert {i: digests(state) for i, state in network.memories.states.items()} == before


@each_strategy
def test_bits_are_the_same_in_any_order(name: str) -> None:
    inner = simulation(name)
    rounds = run_server(inner.population.strategy, world.Reversed(inner, {}), begin(inner), SCHEDULE)
    assert [done.link for done in rounds] == whole(name)[0]


@pytest.mark.process
@pytest.mark.parametrize("name", world.halves())
def test_bits_are_the_same_with_workers(name: str) -> None:
    with simulation(name, workers=2) as parallel:
        assert [done.link for done in run(parallel)] == whole(name)[0]


Corruption = Callable[[Payload], Payload]


def tensors(change: Callable[[Tensors], Tensors]) -> Corruption:
    """Change the first group of an upload; where there is none, what is made of nothing is a group too many."""

    def corrupt(upload: Payload) -> Payload:
        group = next(iter(upload.tensors), "extra")
        return Payload(upload.tensors | {group: change(dict(upload.tensors.get(group, {})))}, upload.metrics)

    return corrupt


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Corruption:
    def apply(group: Tensors) -> Tensors:
        name = next(iter(group), "w")
        return group | {name: change(group.get(name, torch.ones(2)))}

    return tensors(apply)


def metric(name: str, value: float) -> Corruption:
    return lambda upload: Payload(upload.tensors, upload.metrics | {name: value})


CORRUPTIONS: dict[str, Corruption] = {
    "NaN": first(lambda t: t.clone().fill_(torch.nan) if t.is_floating_point() else t.to(torch.float32)),
    "infinity": first(lambda t: t.clone().fill_(torch.inf) if t.is_floating_point() else t.to(torch.float32)),
    "wrong shape": first(lambda t: torch.cat([t.reshape(-1), t.reshape(-1)[:1]])),
    "broadcastable shape": first(lambda t: t.reshape(-1)[:1]),
    "another dtype": first(lambda t: t.to(torch.float64)),
    "missing key": tensors(lambda group: dict(list(group.items())[1:])),
    "extra key": tensors(lambda group: group | {"intruder": torch.ones(1)}),
    "extra group": lambda upload: Payload(upload.tensors | {"intruder": {}}, upload.metrics),
    "NaN loss": metric("train_loss", float("nan")),
    "no examples": metric("examples", 0),
    "negative examples": metric("examples", -9),
    "absurd examples": metric("examples", 1e9),
    "half an example": metric("examples", 1.5),
    "NaN examples": metric("examples", float("nan")),
    "no count": lambda upload: Payload(upload.tensors, {}),
}


@cache
def trained(name: str) -> tuple[dict[int, Payload], Exchange, dict[int, State]]:
    """The first downloads, what comes of the clients' training by them, and what the clients remember then."""
    network = simulation(name)
    state, strategy = begin(network), network.population.strategy
    downloads = {i: strategy.download(state, i, Purpose.TRAIN) for i in network.client_ids()}
    known = {i: download for i, download in downloads.items() if download is not None}
    return known, network.exchange(Purpose.TRAIN, 1, known), network.memories.remember()


class Trained(world.Altered):
    """Clients that have trained by the first downloads before, and are not trained again."""

    def __init__(self, name: str, change: dict[int, Corruption]) -> None:
        super().__init__(simulation(name), change)
        self.name = name

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        if purpose is not Purpose.TRAIN:
            return super().exchange(purpose, round, downloads, quotas, heard)
        known, exchange, memories = copy.deepcopy(trained(self.name))
        assert {i: payload_digests(one) for i, one in downloads.items()} == {
            i: payload_digests(one) for i, one in known.items()
        }
        self.inner.memories.recall(memories, round)
        return dataclasses.replace(exchange, answers=self.altered(purpose, round, downloads, exchange.answers))


@each_strategy
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_bad_upload_is_dropped_and_the_round_goes_on(name: str, corruption: str) -> None:
    schedule = dataclasses.replace(SCHEDULE, rounds=1, clients_per_round=None)
    network = Trained(name, {2: CORRUPTIONS[corruption]})
    strategy, state = network.inner.population.strategy, begin(network.inner)
    (done,) = run_server(strategy, network, state, schedule)
    assert list(done.row["dropped"]) == ["2"]
    assert done.row["dropped"]["2"]
    assert done.row["clients"] == [0, 1, 3, 4]

    answers = copy.deepcopy(trained(name)[1].answers)
    del answers[2]
    state = begin(network.inner)
    uploads = {i: strategy.form.decode(answer, strategy.expects(state, i)) for i, answer in answers.items()}
    assert digests(done.state) == digests(strategy.aggregate(state, 1, uploads)), "the others are averaged alone"


@each_strategy
def test_clients_that_are_not_trained_again_are_those_of_a_simulation(name: str) -> None:
    schedule = dataclasses.replace(SCHEDULE, rounds=1, clients_per_round=None)
    network = Trained(name, {})
    (done,) = run_server(network.inner.population.strategy, network, begin(network.inner), schedule)
    assert done.link == run(simulation(name), schedule)[0].link


def test_a_round_of_which_half_is_bad_goes_on() -> None:
    inner = simulation("fedavg")
    schedule = dataclasses.replace(SCHEDULE, rounds=1, clients_per_round=4)
    chosen = sample(inner.client_ids(), 4, schedule.seed, 1)
    network = world.Altered(inner, dict.fromkeys(chosen[:2], CORRUPTIONS["NaN"]))
    (done,) = run_server(inner.population.strategy, network, begin(inner), schedule)
    assert sorted(done.row["dropped"], key=int) == sorted(map(str, chosen[:2]), key=int)
    assert done.row["clients"] == sorted(chosen[2:])


@each_strategy
def test_the_run_halts_when_more_than_half_are_bad(name: str) -> None:
    network = Trained(name, dict.fromkeys((0, 1, 2), CORRUPTIONS["NaN"]))
    schedule = dataclasses.replace(SCHEDULE, clients_per_round=None)
    rounds = run_server(network.inner.population.strategy, network, begin(network.inner), schedule)
    with pytest.raises(RunHalted, match=r"round 1: 3 of 5 uploads cannot be used.*client 0: "):
        next(rounds)
