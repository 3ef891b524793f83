"""Clients that come and go: with a server and among peers, by chance and by a file, to the same bits."""

import json
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import long_but

import world
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.ledger.transcript import caught_up
from fedshare.links import Links
from fedshare.links.attendance import Attendance, Event
from fedshare.links.churn import Churn
from fedshare.links.file import File
from fedshare.network import Exchange, Purpose
from fedshare.payload import Payload
from fedshare.peers import Served
from fedshare.peers.graphs import Ring
from fedshare.rounds import Round, Schedule, run_server
from fedshare.rounds.account import Account
from fedshare.runs import RunFolder, verify
from fedshare.simulation import Population, Simulation
from fedshare.state import digests
from fedshare.strategies.onebyte import OneByte

EVERYONE = Schedule(rounds=6, seed=0, max_examples=100, clients=world.CLIENTS)
RUN = ["data=digits", "partition.clients=6", "train_examples=300", "client.epochs=1", "tracking=none", "workers=0"]
OFTEN = Churn(leave=0.2, crash=0.2, rejoin=0.5, late=0.4, joined_by=3)
each_strategy = pytest.mark.parametrize("name", long_but(("fedavg", "fedcac", "onebyte"), world.STRATEGIES))

# Two of five leave and come back, one crashes, one joins late, and in round 4 nobody is there.
EVENTS = [
    *(Event(2, 0, "leave"), Event(2, 1, "leave"), Event(2, 3, "crash"), Event(3, 0, "rejoin"), Event(3, 4, "join")),
    *(Event(4, 0, "leave"), Event(4, 2, "leave"), Event(4, 4, "leave")),
    *(Event(5, client, "rejoin") for client in range(5)),
]


class Nobody:
    """A network of clients that answer nothing."""

    def __init__(self, clients: int) -> None:
        self.ids = list(range(clients))

    def client_ids(self) -> list[int]:
        return self.ids

    def exchange(self, purpose: Purpose, round: int, downloads: dict[int, Payload], *rest: Any) -> Exchange:
        return Exchange({})

    memories: Any = None


def attended(network: Any, events: Collection[Event], start: int = 0) -> Attendance:
    late = [event.client for event in events if event.what == "join"]
    return Attendance(network, lambda round, _: [event for event in events if event.round == round], late, start)


def seen(links: Links, seed: int = 0, start: int = 0, clients: int = 20, rounds: int = 25) -> list[Any]:
    """Who is there in each round after `start`, what happens, and who does not answer."""
    network, found = links.around(Nobody(clients), clients, seed, start), []
    for round in range(start + 1, rounds + 1):
        here = network.client_ids()
        exchange = network.exchange(Purpose.TRAIN, round, dict.fromkeys(here, Payload()))
        found.append((here, exchange.events, exchange.absent))
    return found


def run(population: Population, events: Collection[Event]) -> list[Round]:
    with Simulation(lambda: population, population=population) as network:
        state = world.begin(population)
        return list(run_server(population.strategy, attended(network, events), state, EVERYONE))


# The schedule


def test_the_events_depend_on_the_seed_and_the_round_alone() -> None:
    whole = seen(OFTEN)
    assert seen(OFTEN) == whole != seen(OFTEN, seed=1)
    for start in (1, 7, 24):
        assert seen(OFTEN, start=start) == whole[start:]
    assert {what for _, events, _ in whole for what in events} == {"join", "leave", "crash", "rejoin"}


def test_what_churn_draws_is_a_valid_file(tmp_path: Path) -> None:
    whole = seen(OFTEN)
    lines = [
        {"round": round, "client": client, "event": what}
        for round, (_, events, _) in enumerate(whole, 1)
        for what, clients in events.items()
        for client in clients
    ]
    (path := tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, reversed(lines))))
    assert seen(File(path=str(path))) == whole


def test_clients_come_and_go_at_the_rates_given() -> None:
    links = Churn(leave=0.1, crash=0.05, rejoin=0.45, late=0.25, joined_by=9)
    found = seen(links, clients=1000, rounds=60)
    shares = [len(here) / 1000 for here, *_ in found]
    assert max(shares[:1]) < 0.75
    there = 0.45 / (0.1 + 0.05 + 0.45)  # before the events of a round; after them without those who leave
    assert sum(shares[20:]) / 40 == pytest.approx(0.9 * there + 0.45 * (1 - there), abs=0.01)
    joined = [client for _, events, _ in found[:9] for client in events.get("join", ())]
    assert len(set(joined)) == len(joined) == 250
    assert not any("join" in events for _, events, _ in [found[0], *found[9:]])
    assert all(set(absent) == set(events.get("crash", ())) for _, events, absent in found)
    leaves, crashes = (sum(len(events.get(what, ())) for _, events, _ in found) for what in ("leave", "crash"))
    assert leaves / crashes == pytest.approx(2, rel=0.1)


def test_the_list_of_clients_is_another_only_if_they_are_others() -> None:
    inner = Nobody(3)
    network = attended(inner, [Event(2, 0, "leave"), Event(4, 0, "rejoin")])
    found = []
    for round in range(1, 6):
        found.append(network.client_ids())
        assert network.client_ids() is found[-1], "asked twice, it is the same round"
        network.exchange(Purpose.TRAIN, round, {})
    assert found[0] is found[3] is found[4] is inner.ids
    assert found[1] is found[2]
    assert found[1] == [1, 2]
    assert Links().around(inner, 3, 0, 0) is inner


# Runs


@each_strategy
@pytest.mark.parametrize("peering", [Served(), Ring()], ids=["server", "ring"])
def test_every_strategy_goes_on_while_clients_come_and_go(peering: Any, name: str) -> None:
    made = world.build(name)
    rounds = run(replace(made, strategy=peering.around(made.strategy, world.CLIENTS, 0)), EVENTS)
    assert [done.row["absent"] for done in rounds] == [[4], [0, 1, 4], [1, 3], [0, 1, 2, 3, 4], [], []]
    assert rounds[1].row["events"] == {"leave": [0, 1], "crash": [3]}
    assert rounds[1].row["untested"] == {
        "0": "not connected",
        "1": "not connected",
        "3": "crashed",
        "4": "not connected",
    }
    assert rounds[1].row["dropped"] == {"3": "crashed"}
    assert not any(done.row["dropped"] for done in rounds if done.number != 2)
    assert rounds[3].row["clients"] == []
    assert rounds[3].link.server == rounds[2].link.server, "in a round without anybody nothing changes"
    assert all(done.row["clients"] for done in rounds if done.number != 4)
    assert "events" not in rounds[0].row


@pytest.mark.parametrize("name", ["ditto", "onebyte"])
def test_a_crash_loses_the_round_of_that_client_and_no_more(name: str) -> None:
    made, found = world.build(name), []
    for events in ([], [Event(2, 3, "crash")]):
        with Simulation(lambda: made, population=made) as network:
            rounds = run_server(
                made.strategy, attended(network, events), world.begin(made), replace(EVERYONE, rounds=2)
            )
            found.append([{client: digests(own) for client, own in network.memories.states.items()} for _ in rounds])
    (first, second), (same, crashed) = found
    assert first == same
    assert crashed[3] == first[3] != second[3]
    assert {client: crashed[client] for client in (0, 1, 2, 4)} == {client: second[client] for client in (0, 1, 2, 4)}


def test_if_all_crash_the_run_goes_on() -> None:
    events = [Event(2, client, "crash") for client in range(5)] + [Event(3, client, "rejoin") for client in range(5)]
    rounds = run(world.build("fedavg"), events)
    assert len(rounds[1].row["dropped"]) == 5
    assert rounds[2].row["clients"] == [0, 1, 2, 3, 4]


def test_a_client_that_crashes_in_round_1_is_there_for_the_test_before_it() -> None:
    made = world.build("fedavg")
    with Simulation(lambda: made, population=made) as network:
        schedule = replace(EVERYONE, rounds=1, evaluate_first=True)
        (done,) = run_server(made.strategy, attended(network, [Event(1, 2, "crash")]), world.begin(made), schedule)
    assert done.row["before"]["untested"] == {}
    assert done.row["untested"] == {"2": "crashed"}


@pytest.mark.process
def test_any_number_of_workers_gives_the_same_bits() -> None:
    found = []
    for workers in (0, 2):
        with Simulation(partial(world.build, "ditto"), workers=workers) as network:
            made = network.population
            around = OFTEN.around(network, world.CLIENTS, 0, 0)
            found.append([done.link for done in run_server(made.strategy, around, world.begin(made), EVERYONE)])
    assert found[0] == found[1]


# Catching up


def test_a_late_client_catches_up_by_what_is_smaller() -> None:
    made = replace(world.build("onebyte"), strategy=OneByte(probes=32))
    away = [
        Event(2, 0, "leave"),
        Event(3, 0, "rejoin"),
        Event(2, 1, "crash"),
        Event(4, 1, "rejoin"),
        Event(6, 4, "join"),
    ]
    with Simulation(lambda: made, population=made) as network:
        around, account = attended(network, away), Account(notes=caught_up)
        rounds = list(run_server(made.strategy, around, world.begin(made), EVERYONE, account=account))
        heads = {client: own["ledger"]["head"] for client, own in network.memories.states.items()}
    assert {done.number: done.row.get("caught_up") for done in rounds} == {
        1: None,
        2: None,
        3: {"0": "2 commits"},
        4: {"1": "3 commits"},
        5: None,
        6: {"4": "snapshot"},
    }
    assert len(set(heads.values())) == 1, "all know the same ledger"
    sums, head = rounds[-1].state["sums"], 32
    assert rounds[-1].row["bytes_caught_up"] == sums.nbytes + head
    assert "bytes_caught_up" not in rounds[4].row


def test_what_is_no_ledger_is_not_caught_up_with() -> None:
    assert caught_up({0: Payload({"params": {"w": torch.zeros(3)}})}) == {}


# Commands


@pytest.mark.parametrize(
    "given", [["strategy=ditto"], ["strategy=onebyte", "model=logistic"], ["peers=ring", "strategy=gossip"]]
)
def test_a_run_that_goes_on_meets_the_same_events(given: list[str], tmp_path: Path, capsys: Any) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    churn = ["links=churn", "links.leave=0.3", "links.crash=0.1", "links.rejoin=0.4", "links.late=0.3"]
    command = ["run", *given, *RUN, *churn, "links.joined_by=4"]
    for arguments in (
        [*command, "rounds=5", f"folder={whole}"],
        [*command, "rounds=2", f"folder={parts}"],
        ["resume", str(parts), "--rounds", "5"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code, capsys.readouterr().err
    assert verify(RunFolder(whole), RunFolder(parts))[0]
    rows, again = RunFolder(whole).rows(), RunFolder(parts).rows()
    assert [row.get("events") for row in rows] == [row.get("events") for row in again]
    assert sum("events" in row for row in rows) >= 3


BAD = {
    "links=churn links.leave=1.5": "links: leave=1.5: must be from 0 to 1",
    "links=churn links.leave=0.7 links.crash=0.6": "links: leave=0.7 crash=0.6: their sum must be at most 1",
    "links=churn links.joined_by=1": "links: joined_by=1: must be at least 2",
    "links=churn links.leave=often": "links.leave=often: must be a number",
    "links=file": "links.path: required: the file of the events",
    "links=file links.path=/nowhere": "links.path=/nowhere: cannot be read",
}


@pytest.mark.parametrize("overrides", BAD)
def test_what_are_no_links_is_one_line(overrides: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", *RUN, *overrides.split(), f"folder={tmp_path / 'run'}"])
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert BAD[overrides] in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "run").exists()


GOOD = '{"round": 3, "client": 2, "event": "leave"}\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "leave", "line 2: is not JSON: leave"),
        ("\n[3, 2]", 'line 2: must be {"round": 3, "client": 2, "event": "leave"}, with these keys, not [3, 2]'),
        ('{"round": 3, "client": 2, "event": "slow", "delay": 2}', "line 1: must be {"),
        ('{"round": 3, "client": 2}', "line 1: must be {"),
        ('{"round": 0, "client": 2, "event": "leave"}', "line 1: round 0: must be an integer from 1"),
        ('{"round": true, "client": 2, "event": "leave"}', "line 1: round true: must be an integer from 1"),
        ('{"round": 3, "client": 4, "event": "leave"}', "line 1: client 4: must be an integer from 0 to 3"),
        ('{"round": 3, "client": "2", "event": "leave"}', 'line 1: client "2": must be an integer from 0 to 3'),
        (
            '{"round": 3, "client": 2, "event": "stop"}',
            'line 1: event "stop": must be one of join, leave, crash, rejoin',
        ),
        ('{"round": 3, "client": 2, "event": ["leave"]}', 'line 1: event ["leave"]: must be one of'),
        (
            GOOD + '{"round": 5, "client": 2, "event": "leave"}',
            "line 2: client 2 cannot leave in round 5, after its leave in round 3; allowed: rejoin",
        ),
        (
            '{"round": 5, "client": 2, "event": "join"}\n' + GOOD,
            "line 1: client 2 cannot join in round 5, after its leave in round 3; allowed: rejoin",
        ),
        (
            '{"round": 5, "client": 2, "event": "rejoin"}',
            "line 1: client 2 cannot rejoin in round 5, after being there from the start; allowed: join, leave, crash",
        ),
        (GOOD + GOOD, "line 2: client 2 has two events in round 3; one is allowed"),
        ("[" * 100_000, "line 1: is not JSON: [[["),
    ],
)
def test_what_a_file_of_events_may_not_hold(text: str, line: str, tmp_path: Path) -> None:
    (path := tmp_path / "events.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        File(path=str(path)).check(4)
    assert str(error.value).startswith(f"{path}: {line}")
