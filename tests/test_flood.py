"""Ledgers among peers: sets of entries, floods over lossy links, and models equal to the bit."""

import multiprocessing
import multiprocessing.connection
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import world
from fedshare.errors import UserError
from fedshare.ledger import Commit
from fedshare.ledger.entries import Entries, Keys
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.replay import parted, replay
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import kept, telling_sums
from fedshare.network import answer
from fedshare.payload import Payload
from fedshare.peers import Flood, Topology
from fedshare.peers.graphs import Full, RandomRegular, Ring, Star
from fedshare.peers.varying import Matching, OnePeerExponential
from fedshare.population import Population
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.state import digests, pack, unpack
from fedshare.strategies.onebyte import OneByte
from fedshare.strategy import Purpose
from fedshare.tensors import digest
from world import PATIENCE

PEERS = 5
SIXTEEN = range(16)
SCHEDULE = Schedule(rounds=3, seed=0, max_examples=100)


def among(topology: Topology) -> Population:
    made = world.build("onebyte")
    return replace(made, strategy=topology.around(made.strategy, world.CLIENTS, 0, SCHEDULE.rounds))


def run(population: Population, schedule: Schedule = SCHEDULE, **options: Any) -> list[Round]:
    with Simulation(lambda: population, population=population, **options) as network:
        return list(run_server(population.strategy, network, world.begin(population), schedule))


def sent(rounds: list[Round]) -> int:
    return sum(int(entry.state["flood"]["sent"].sum()) for entry in rounds)


# Sets of entries


def codes(round: int, peer: int, width: int = 2) -> bytes:
    return bytes((round * PEERS + peer + place) % 256 for place in range(width))


def filled(names: list[tuple[int, int]]) -> Entries:
    entries = Entries.empty(PEERS, 2)
    for round, peer in names:
        if round:
            entries.say(round, peer, codes(round, peer))
        else:
            entries.remove(peer)
    return entries


NAMES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, PEERS - 1)), unique=True, max_size=40)


@given(NAMES, st.randoms())
@settings(deadline=None)
def test_any_order_any_messages_and_any_repetitions_give_one_set(names: list[tuple[int, int]], draw: Any) -> None:
    whole, other = filled(names), Entries.empty(PEERS, 2)
    keys = whole.names().tolist() * 2
    draw.shuffle(keys)
    while keys:
        taken = [keys.pop() for _ in range(min(len(keys), draw.randint(1, 5)))]
        held, fresh = other.hear(whole.pack(np.unique(np.array(taken, dtype=np.int64))), 300)
        assert set(fresh.tolist()) <= set(held.tolist()) == set(taken)
    assert other.digest() == whole.digest()
    assert len(whole.lacking(other.summary())) == 0


@given(NAMES, NAMES)
@settings(deadline=None)
def test_a_summary_tells_what_is_lacking(here: list[tuple[int, int]], there: list[tuple[int, int]]) -> None:
    found = filled(here).lacking(filled(there).summary())
    assert set(found.tolist()) == {round * PEERS + peer for round, peer in set(here) - set(there)}


def test_the_digest_is_of_names_and_codes() -> None:
    one = filled([(1, 2), (3, 4)])
    assert one.digest() == filled([(3, 4), (1, 2)]).digest()
    other = filled([(1, 2)])
    other.say(3, 4, b"xy")
    assert one.digest() != other.digest() != filled([(1, 2)]).digest()
    longer = filled([(1, 2), (3, 4)])
    longer.reach(9)
    assert one.digest() == longer.digest()


def bad_messages() -> dict[str, tuple[bytes, str]]:
    good = filled([(1, 2), (3, 4)])
    message = good.pack(good.names())
    late = filled([(300, 0)])
    return {
        "empty": (b"", "the message is cut short"),
        "cut in the codes": (message[:-1], "2 entries of 2 bytes are followed by 3 bytes of codes"),
        "cut in the names": (message[:2], "the message is cut short"),
        "too long": (message + b"x", "2 entries of 2 bytes are followed by 5 bytes of codes"),
        "too late": (late.pack(late.names()), "an entry is of a round after 5"),
        "huge": (b"\x01" + b"\xff" * 9 + b"\x01", "a number is longer than eight bytes"),
        "endless": (b"\x02\xff\xff\xff", "the message is cut short"),
        "other codes": (message[:-1] + b"\0", "peer 4 said two things in round 3"),
    }


@pytest.mark.parametrize("name", bad_messages())
def test_a_bad_message_changes_nothing(name: str) -> None:
    message, reason = bad_messages()[name]
    entries = filled([(3, 4)])
    before = entries.digest()
    with pytest.raises(ValueError, match=reason):
        entries.hear(message, 5)
    assert entries.digest() == before


@pytest.mark.parametrize("summary", [b"", b"\x02\x01", b"\x01\x07", b"\x01\x02", b"\x01\x01\x01"])
def test_a_bad_summary_is_refused(summary: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut short|goes on"):
        filled([(3, 4)]).lacking(summary)


def test_a_removal_takes_out_what_comes_later_too() -> None:
    entries = filled([(1, 2), (2, 2), (2, 3), (0, 2)])
    entries.say(3, 2, codes(3, 2))
    assert np.argwhere(entries.counted).tolist() == [[2, 3]]
    assert entries.names().tolist() == [2, 7, 12, 13, 17]


# Runs


def test_on_a_full_graph_every_peer_has_the_servers_model_in_every_round() -> None:
    server, peers = run(world.build("onebyte")), run(among(Full()))
    for one, other in zip(server, peers, strict=True):
        assert digests(one.state["params"]) == digests(other.state["params"])
        assert one.state["ledger"]["head"] == other.state["ledger"]["head"]
        assert one.row["accuracy"] == other.row["accuracy"]
        assert other.row["consensus"] == 0
        assert other.row["missing"] == {}
        assert (other.state["flood"]["sums"] == one.state["sums"]).all()


@pytest.mark.parametrize("topology", [Ring(), Star(), RandomRegular(degree=2), Matching(), OnePeerExponential()])
def test_the_flood_settles_after_the_last_round(topology: Topology) -> None:
    rounds = run(among(topology))
    assert rounds[0].row["missing"]
    assert rounds[0].row["consensus"] > 0
    final = rounds[-1]
    assert final.row["missing"] == {}
    assert final.row["consensus"] == 0
    assert (final.state["flood"]["sums"] == final.state["sums"]).all()
    assert len(set(map(tuple, final.state["flood"]["heads"].tolist()))) == 1
    assert sent(rounds) > 0


def test_losses_and_duplicates_change_the_way_and_not_the_model() -> None:
    rough = run(among(Ring(flood=Flood(hops=4, loss=0.8, duplicates=0.3))))
    smooth = run(among(Ring(flood=Flood(hops=4))))
    for one in (rough[-1], smooth[-1]):
        assert one.row["missing"] == {}
        assert (one.state["flood"]["sums"] == one.state["sums"]).all()
    assert sent(rough) > sent(smooth)
    # With enough hops, a round is that of a server; with losses, peers measure on other models.
    server = digests(run(world.build("onebyte"))[-1].state["params"])
    assert digests(smooth[-1].state["params"]) == server != digests(rough[-1].state["params"])


def test_who_takes_no_part_is_sent_what_it_lacks_later() -> None:
    sampled = replace(SCHEDULE, clients_per_round=3)
    rounds = run(among(Full()), sampled)
    assert rounds[0].row["missing"]  # two were not there
    assert all(1 < len(entry.row["clients"]) <= 3 for entry in rounds)
    final = rounds[-1].state["flood"]
    here = rounds[-1].row["clients"]
    assert len({tuple(final["heads"][peer].tolist()) for peer in here}) == 1


def test_a_removed_peer_is_as_if_it_had_said_nothing() -> None:
    population = among(Ring(flood=Flood(remove=[(2, 1), (3, 3)])))
    rounds = run(population)
    final = rounds[-1].state
    found = kept(final)
    assert found is not None
    manifest, transcript = found
    commits, taken = parted(transcript.entries(), {1, 3}, 1)
    assert len(taken) == 3
    vector = torch.empty_like(final["initial"])
    replay(Meaning(manifest), commits, final["initial"], vector)
    for peer in range(world.CLIENTS):
        client = population.client(peer, {})
        download = population.strategy.download(final, peer, Purpose.EVALUATE)
        assert download is not None
        population.strategy.apply(client, download)
        torch.testing.assert_close(client.vector, vector, rtol=0, atol=0)


def test_measurements_on_a_stale_model_do_not_count() -> None:
    population = among(Ring(flood=Flood(stale=0)))
    strategy, state = population.strategy, world.begin(population)
    upload = Payload({"codes": strategy.expects(state, 0)["codes"]}, {"examples": 1.0})
    for round in (1, 2):
        state = strategy.aggregate(state, round, dict.fromkeys(range(world.CLIENTS - 1), upload))
    state = strategy.aggregate(state, 3, dict.fromkeys(range(world.CLIENTS), upload))
    known = state["flood"]["known"]
    assert known[0, 3, 0]
    assert not known[:, 3, world.CLIENTS - 1].any()
    assert known[world.CLIENTS - 1, 1].any()  # but it has caught up


def test_a_run_goes_on_from_its_memory_to_the_same_bits() -> None:
    population = among(Matching(flood=Flood(loss=0.2)))
    rounds = run(population)
    again = unpack(pack(rounds[0].state))
    with Simulation(lambda: population, population=population) as network:
        network.memories.recall({client: {} for client in range(world.CLIENTS)}, 1)
        more = list(run_server(population.strategy, network, again, SCHEDULE, 1, rounds[0].link.digest))
    assert digests(more[-1].state) == digests(rounds[-1].state)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hops": 0}, "hops=0: must be at least 1"),
        ({"stale": -1}, "stale=-1: must be null, or at least 0"),
        ({"loss": 1.0}, "loss=1.0: must be at least 0 and below 1"),
        ({"duplicates": -0.1}, "duplicates=-0.1: must be at least 0 and below 1"),
        ({"remove": [(0, 1)]}, r"remove=\[\(0, 1\)\]: must be pairs of a round and a peer, such as"),
        ({"remove": [3]}, r"remove=\[3\]: must be pairs"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Flood(**fields)


# Separate processes


def peer(me: int, links: dict[int, Connection], rounds: int, out: Connection) -> None:
    """Take part as a process of one's own, which shares nothing with others but messages."""
    population = world.build("onebyte", parts=world.shares(len(SIXTEEN)))
    strategy, client = population.strategy, population.client(me, {})
    assert isinstance(strategy, OneByte)
    meaning = Meaning(strategy.manifest(population.scratch.initial))
    entries, sums = Entries.empty(len(SIXTEEN), strategy.probes), Sums.zeros(len(population.scratch.first))
    waiting = {other: np.zeros(0, dtype=np.int64) for other in links}

    def learn(new: Keys, source: int | None) -> None:
        for key in new.tolist():
            round, sender = divmod(key, len(SIXTEEN))
            commit = Commit(round, strategy.step(round, len(SIXTEEN)), {sender: entries.code(key)})
            sums.add(meaning.directions, meaning.entries(commit))
        for other in waiting.keys() - {source}:
            waiting[other] = np.union1d(waiting[other], new)

    def hop(round: int) -> None:
        for other, link in links.items():
            link.send_bytes(entries.pack(waiting[other]))
            waiting[other] = waiting[other][:0]
        for other, link in sorted(links.items(), reverse=me % 2 == 0):
            learn(entries.hear(link.recv_bytes(), round)[1], other)

    for round in range(1, rounds + 1):
        download = telling_sums(entries.digest(), sums.narrow(), round - 1)
        upload = answer(strategy, client, Purpose.TRAIN, round, download)
        learn(entries.say(round, me, strategy.said(upload)), None)
        hop(round)
    for _ in SIXTEEN:
        hop(rounds)
    out.send_bytes(entries.digest() + bytes.fromhex(digest(sums.values.long())))


@pytest.mark.process
def test_sixteen_processes_have_the_bits_of_a_simulation() -> None:
    rounds = 3
    made = world.build("onebyte", parts=world.shares(len(SIXTEEN)))
    population = replace(made, strategy=Ring().around(made.strategy, len(SIXTEEN), 0, rounds))
    final = run(population, replace(SCHEDULE, rounds=rounds))[-1].state
    spawn = multiprocessing.get_context("spawn")
    ends = {(one, (one + 1) % len(SIXTEEN)): spawn.Pipe() for one in SIXTEEN}
    results, processes = [], []
    for me in SIXTEEN:
        left, right = (me - 1) % len(SIXTEEN), (me + 1) % len(SIXTEEN)
        here, there = spawn.Pipe(duplex=False)
        arguments = me, {left: ends[left, me][1], right: ends[me, right][0]}, rounds, there
        processes.append(spawn.Process(target=peer, args=arguments, daemon=True))
        processes[-1].start()
        results.append(here)
    assert multiprocessing.connection.wait(results, PATIENCE)
    said = [here.recv_bytes() for here in results if here.poll(PATIENCE)]
    for process in processes:
        process.join(PATIENCE)
    simulated = [
        bytes(head.tolist()) + bytes.fromhex(digest(sums))
        for head, sums in zip(final["flood"]["heads"], final["flood"]["sums"], strict=True)
    ]
    assert said == simulated
    assert len(set(said)) == 1
