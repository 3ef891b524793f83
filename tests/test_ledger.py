"""The ledger that is a model: its oracles, one by one (of the byte and the directions, tests/test_onebyte.py)."""

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runs import fedshare
from torch import Tensor

import world
from fedshare.directions import Origin
from fedshare.directions.gaussian import Gaussian
from fedshare.directions.perturb import settle
from fedshare.directions.rademacher import Rademacher
from fedshare.errors import RunHalted, UserError
from fedshare.forms import wire
from fedshare.ledger import Commit, Manifest, replica
from fedshare.ledger.coding import Bit, Byte, Float, Sign
from fedshare.ledger.meaning import MESSAGES, Meaning
from fedshare.ledger.replica import Replica
from fedshare.ledger.steps import Steps
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import Transcript, kept, telling
from fedshare.network import Purpose
from fedshare.payload import Payload, flaw
from fedshare.rounds import Round, Schedule, run_server
from fedshare.runs import RunFolder, verify
from fedshare.simulation import Simulation
from fedshare.state import State, digests
from fedshare.strategies.onebyte import OneByte
from fedshare.tensors import digest
from optional import needs

Capture = pytest.CaptureFixture[str]
SIGNS, NORMAL = Rademacher(), Gaussian()


def meaning(size: int, kind: Rademacher | Gaussian = SIGNS, pool: int = 0, run: int = 3) -> Meaning:
    coding = Byte()
    fraction = coding.bits + kind.bits + 17
    return Meaning(
        Manifest(run, [("w", [size])], digest(torch.zeros(size)), coding.name, kind.name, fraction, pool=pool)
    )


def copy_of(vector: Tensor, kind: Rademacher | Gaussian = SIGNS) -> Replica:
    return Replica(meaning(len(vector), kind), vector.clone())


def commits(rounds: int, peers: int = 3, probes: int = 11, seed: int = 0) -> list[Commit]:
    draw = random.Random(seed)
    return [Commit(r, 90 + r, {p: draw.randbytes(probes) for p in range(peers)}) for r in range(1, rounds + 1)]


def replayed(some: list[Commit], means: Meaning, size: int) -> Tensor:
    sums = Sums.zeros(size)
    sums.add(means.directions, (entry for commit in some for entry in means.entries(commit)))
    return sums.values


def projected(
    vector: Tensor, origin: Origin, epsilon: float, f: Callable[[Tensor], Tensor], kind: Rademacher | Gaussian
) -> Tensor:
    """Of eight probes, the differences of `f`, of vectors along the last dimension, over the distance: ``[8]``."""
    up, down = copy_of(vector, kind).probe(vector, origin, 8, epsilon, len(vector), lambda: f(vector), f).unbind(1)
    return (up - down) / (2 * epsilon)


def directions(kind: Rademacher | Gaussian, origin: Origin, size: int) -> Tensor:
    """The eight directions as numbers ``[8, size]``."""
    rows = torch.zeros(8, size, dtype=torch.float64)
    for probe, row in enumerate(rows):
        kind.displace(row, kind.draw(origin, size, torch.device("cpu")), [0.0] * probe + [1.0])
    return rows


# 1, 2: what a projected gradient is


@pytest.mark.long
@pytest.mark.parametrize(("kind", "length"), [(SIGNS, lambda d: d), (NORMAL, lambda d: d + 2)])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_of_a_quadratic_the_steps_are_the_gradient_on_average_and_as_long_as_they_should_be(
    kind: Rademacher | Gaussian, length: object, epsilon: float
) -> None:
    size, count = 12, 500
    theta, curvature = torch.linspace(-1, 1, size, dtype=torch.float64), torch.linspace(0.5, 2, size).double()
    gradient = curvature * theta
    steps = []
    for sequence in range(count):
        origin = Origin(7, 0, sequence)
        p = projected(theta.clone(), origin, epsilon, lambda x: (curvature * x * x).sum(-1) / 2, kind)
        steps.append(p[:, None] * directions(kind, origin, size))
    found = torch.cat(steps)
    error = found.std(dim=0) / math.sqrt(len(found))
    assert ((found.mean(dim=0) - gradient).abs() < 4.5 * error).all()
    expected = length(size) * gradient.square().sum()  # type: ignore[operator]
    assert found.square().sum(1).mean() == pytest.approx(expected.item(), rel=0.08)


@pytest.mark.parametrize("kind", [SIGNS, NORMAL])
@pytest.mark.parametrize("epsilon", [2.0**-10, 0.5, 8.0])
def test_of_a_linear_function_a_projected_gradient_is_exact(kind: Rademacher | Gaussian, epsilon: float) -> None:
    gradient = torch.tensor([1.0, -2.0, 0.5, 0.25, 3.0], dtype=torch.float64)
    origin = Origin(1, 2, 3)
    p = projected(torch.zeros(5, dtype=torch.float64), origin, epsilon, lambda x: x @ gradient, kind)
    torch.testing.assert_close(p, directions(kind, origin, 5) @ gradient, rtol=1e-12, atol=0)


def test_gaussian_directions_are_normal_and_unrelated() -> None:
    z = torch.cat([directions(NORMAL, Origin(5, 0, sequence), 4001) for sequence in range(4)])
    assert z.mean().abs() < 5 / math.sqrt(z.numel())
    assert z.var() == pytest.approx(1, abs=0.02)
    assert (z**4).mean() == pytest.approx(3, abs=0.12)
    assert (z @ z.T / 4001 - torch.eye(len(z))).abs().max() < 0.1
    assert torch.equal(z[:8, 1000:1003], directions(NORMAL, Origin(5, 0, 0), 4001)[:, 1000:1003])


# 3, 4, 10: what a ledger is does not depend on how it is read


def test_shuffled_batched_snapshotted_and_undone_a_ledger_gives_one_model() -> None:
    size, some = 5_003, commits(12)
    means = meaning(size)
    whole = replayed(some, means, size)
    assert whole.abs().max() > 0

    entries = [entry for commit in some for entry in means.entries(commit)]
    assert len(entries) == 12 * 3 * 2, "eleven codes are two messages"
    shuffled = Sums.zeros(size)
    random.Random(1).shuffle(entries)
    for position in range(0, len(entries), 7):
        shuffled.add(means.directions, entries[position : position + 7])
    assert torch.equal(shuffled.values, whole)

    snapshot = Sums(replayed(some[:5], means, size))
    snapshot.add(means.directions, (entry for commit in some[5:] for entry in means.entries(commit)))
    assert torch.equal(snapshot.values, whole)

    undone = Sums(whole.clone())
    undone.add(means.directions, ((origin, -np.asarray(q)) for origin, q in entries if origin.peer == 1))
    assert torch.equal(undone.values, replayed([commit.without(1) for commit in some], means, size))


def test_what_is_added_depends_only_on_who_has_said_what() -> None:
    """As many samples of one machine, or of as many machines, in one commit or several, are the same entries."""
    size, means = 700, meaning(700)
    (whole,) = commits(1, peers=4)
    apart = [Commit(1, whole.step, {peer: codes}) for peer, codes in whole.said.items()]
    assert torch.equal(replayed([whole], means, size), replayed(apart[::-1], means, size))


def test_a_pool_adds_each_direction_once_and_gives_the_same_sums() -> None:
    size, some = 300, commits(6)
    means = meaning(size, pool=4)
    entries = [entry for commit in some for entry in means.entries(commit)]
    assert len({origin for origin, _ in entries}) == 4 < len(entries)
    one_by_one = Sums.zeros(size)
    for entry in entries:
        one_by_one.add(means.directions, [entry])
    assert torch.equal(replayed(some, means, size), one_by_one.values)


PROGRAM = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_ledger import commits, meaning, replayed
from fedshare.directions.perturb import settle
from fedshare.tensors import digest
torch.set_num_threads({threads})
some = commits(4, probes=16)
{order}
values = replayed(some, meaning(150_001), 150_001)
vector = torch.empty(150_001)
settle(vector, torch.arange(150_001) * 2.0**-17 + 2.0**-20, values, 30)
print(digest(vector))
"""


def test_sums_are_told_in_as_few_bits_as_they_need_however_they_came_about() -> None:
    size, some = 500, commits(400, probes=8)
    means, copies = meaning(size), []
    for each in (1, len(some)):
        copies.append(Replica(means, torch.zeros(size)))
        known = Transcript.begin(means.manifest)
        for start in range(0, len(some), each):
            new = some[start : start + each]
            ways = {known.head: new}
            known = known.extended(*new)
            copies[-1].follow(known, ways)
    wide = [copy._sums.values.dtype for copy in copies]
    first, second = (copy.sums() for copy in copies)
    assert torch.equal(first, second)
    assert first.dtype == second.dtype == (torch.int32 if first.abs().max() < 2**31 else torch.int64), wide


@pytest.mark.process
def test_every_machine_thread_count_and_order_gives_one_sha256() -> None:
    found = set()
    for capability, threads, order in (("default", 1, ""), (None, 2, "some.reverse()")):
        program = PROGRAM.format(tests=str(world.ROOT / "tests"), threads=threads, order=order)
        env = os.environ | ({"ATEN_CPU_CAPABILITY": capability} if capability else {})
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=world.PATIENCE
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


# 5, 7, 9: a round


def network(strategy: OneByte | None = None) -> Simulation:
    population = world.build("onebyte")
    if strategy:
        population = type(population)(**vars(population) | {"strategy": strategy})
    return Simulation(world.build, population=population)


def begin(net: Simulation) -> State:
    return world.begin(net.population)


def rounds(net: Simulation, count: int, **schedule: object) -> list[Round]:
    schedule = {"rounds": count, "seed": 0, "evaluate_every": 0, "max_examples": 100} | schedule
    return list(run_server(net.population.strategy, net, begin(net), Schedule(**schedule)))  # type: ignore[arg-type]


@pytest.mark.parametrize("together", [2**20, 0])
def test_the_model_is_the_same_before_and_after_it_is_probed(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "TOGETHER", together)
    net = network()
    state = rounds(net, 3)[-1].state
    population = net.population
    download = population.strategy.download(state, 1, Purpose.TRAIN)
    client = population.client(1, net.memories.states[1])
    population.strategy.apply(client, download)  # type: ignore[arg-type]
    before = digest(client.vector)
    population.strategy.train(client, 4, download)  # type: ignore[arg-type]
    assert digest(client.vector) == before
    assert digests(client.params()) == digests(state["params"]), "and it is the server's, to the bit"


def test_probing_one_by_one_and_together_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = torch.linspace(-1, 1, 50)
    found = []
    for together in (2**20, 0):
        monkeypatch.setattr(replica, "TOGETHER", together)
        found.append(projected(theta.clone(), Origin(1, 2, 3), 1e-2, lambda x: (x**3).sum(-1), SIGNS))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("coding", ["byte", "bit", "sign", "float"])
def test_everyone_has_the_model_that_the_bytes_say_the_senders_too(coding: str) -> None:
    net = network(OneByte(coding=coding, lr=0.05, probes=8 if coding == "bit" else 3))  # type: ignore[arg-type]
    state = rounds(net, 4)[-1].state
    manifest, ledger = kept(state)  # type: ignore[misc]
    vector = torch.empty_like(state["initial"])
    values = replayed(list(ledger.entries()), Meaning(manifest), len(vector))
    settle(vector, state["initial"], values, manifest.fraction)
    by_name = manifest.parameters(vector)
    assert all(torch.equal(state["params"][name], tensor) for name, tensor in by_name.items())
    assert any(not torch.equal(tensor, net.population.scratch.whole[name]) for name, tensor in by_name.items())
    for id in net.client_ids():
        client = net.population.client(id, net.memories.states[id])
        net.population.strategy.apply(client, net.population.strategy.download(state, id, Purpose.TRAIN))  # type: ignore[arg-type]
        assert digests(client.params()) == digests(state["params"])


@pytest.mark.parametrize(("coding", "bytes_each"), [("byte", 1), ("sign", 1), ("float", 4)])
@pytest.mark.parametrize("probes", [1, 8, 19])
def test_a_message_has_a_byte_for_each_probe_and_nothing_else(coding: str, bytes_each: int, probes: int) -> None:
    net = network(OneByte(coding=coding, probes=probes))  # type: ignore[arg-type]
    downloads = {id: net.population.strategy.download(begin(net), id, Purpose.TRAIN) for id in net.client_ids()}
    for upload in net.exchange(Purpose.TRAIN, 1, downloads).answers.values():  # type: ignore[arg-type]
        assert len(wire.pack(upload)[1]) == bytes_each * probes, "the tensors as they cross the network"
    (done,) = rounds(net, 1)
    assert done.row["bytes_up"] == 5 * bytes_each * probes


def test_a_bit_is_the_sign_and_eight_are_a_byte() -> None:
    bit, values = Bit(), torch.tensor([1.0, -1, 0, math.nan, -math.inf, math.inf, -1e-9, 3], dtype=torch.float64)
    sent = bit.encode(values)
    assert sent.tolist() == [0b10101101]
    assert bit.decode(sent).tolist() == bit.integers(sent.numpy().tobytes()).tolist() == [1, -1, 1, 1, -1, 1, -1, 1]
    net = network(OneByte(coding="bit", probes=16))
    assert rounds(net, 1)[0].row["bytes_up"] == 5 * 2
    with pytest.raises(UserError, match="probes=9: coding=bit sends 8 at a time: must be a multiple of 8"):
        OneByte(coding="bit", probes=9)


def test_the_byte_is_that_of_the_projected_gradient() -> None:
    strategy = OneByte()
    values = torch.tensor([0.3, -2.0, 0.0, 1e9, math.nan, math.inf], dtype=torch.float64)
    sent = strategy.form.encode(Payload({"update": {"projected": values}})).tensors["codes"]["codes"]
    assert sent.tolist() == np.asarray([57, 207, 0, 127, 128, 128]).tolist() or torch.equal(sent, Byte().encode(values))
    for coding in (Byte(), Sign(), Float()):
        again = coding.encode(coding.decode(coding.encode(values)))
        assert torch.equal(again, coding.encode(values))
        assert coding.integers(again.numpy().tobytes())[4:].tolist() == [0, 0]
    assert Float().decode(Float().encode(values))[:3].tolist() == pytest.approx([0.3, -2, 0], abs=2**-20)


# 8


@pytest.mark.long
def test_a_million_messages_have_origins_of_their_own() -> None:
    means, draw = meaning(1), random.Random(0)
    asked = {(peer, r, m) for peer in range(400) for r in (1, 10, 11, 100, 2**40) for m in range(MESSAGES)}
    asked |= {(peer, r, 0) for peer in range(700) for r in range(1, 800)}
    asked |= {(2**31, draw.randrange(2**50), draw.randrange(MESSAGES)) for _ in range(1000)}
    assert len(asked) >= 1_000_000
    assert len({means.origin(*which) for which in asked}) == len(asked)


# 10: who comes later, who leaves


@pytest.mark.parametrize("rounds_away", [3, 40])
def test_who_joins_later_has_the_model_of_those_who_were_there(rounds_away: int) -> None:
    """By the commits that it lacks, or where they weigh more than the sums, by those."""
    net = network(OneByte(lr=0.05, probes=40))
    population = net.population
    state = begin(net)
    for round in range(1, rounds_away + 1):
        downloads = {id: population.strategy.download(state, id, Purpose.TRAIN) for id in (0, 1)}
        state = population.strategy.aggregate(state, round, net.exchange(Purpose.TRAIN, round, downloads).answers)  # type: ignore[arg-type]
    download = population.strategy.download(state, 4, Purpose.TRAIN)
    assert ("sums" in download.tensors["ledger"]) == (rounds_away == 40)  # type: ignore[union-attr]
    assert download.nbytes <= state["sums"].nbytes + 32  # type: ignore[union-attr]
    late = population.client(4, {})
    population.strategy.apply(late, download)  # type: ignore[arg-type]
    assert digests(late.params()) == digests(state["params"])
    # It goes on from what it was told.
    net.exchange(Purpose.TRAIN, rounds_away + 1, {4: download})  # type: ignore[dict-item]
    assert net.memories.states[4]["ledger"]["round"] == rounds_away
    assert len(net.memories.states[0]["ledger"]["commits"]) <= state["sums"].nbytes


def test_who_leaves_in_the_middle_of_a_round_is_in_nobodys_model() -> None:
    net = network(OneByte(lr=0.05))
    altered = world.Altered(net, {2: lambda upload: Payload({"codes": {"codes": torch.zeros(3)}}, {"examples": 5.0})})
    strategy = net.population.strategy
    schedule = Schedule(rounds=3, seed=0, evaluate_every=0, max_examples=100)
    last = list(run_server(strategy, altered, begin(net), schedule))[-1]
    assert list(last.row["dropped"]) == ["2"]
    _, ledger = kept(last.state)  # type: ignore[misc]
    assert [sorted(commit.said) for commit in ledger.entries()] == [[0, 1, 3, 4]] * 3
    for id in (0, 2):
        client = net.population.client(id, net.memories.states[id])
        strategy.apply(client, strategy.download(last.state, id, Purpose.TRAIN))  # type: ignore[arg-type]
        assert digests(client.params()) == digests(last.state["params"])


def test_who_missed_rounds_is_told_the_commits_or_the_sums_whichever_is_less() -> None:
    some, means = commits(12), meaning(5_003)
    transcript = Transcript.begin(means.manifest).extended(*some)
    lacking = len(transcript.after(3))
    for size, group in ((lacking, "commits"), (lacking - 1, "sums")):
        told = telling(transcript, torch.zeros(size, dtype=torch.int8), 3)
        assert told.tensors["ledger"].keys() == {"head", group}
    early = telling(transcript.snapshot(torch.zeros(5_003, dtype=torch.int32)), torch.zeros(10**6), 3)
    assert "sums" in early.tensors["ledger"], "its commits are there no more"


def test_another_ledger_is_refused() -> None:
    net = network(OneByte(lr=0.05))
    state = rounds(net, 3)[-1].state
    other = network(OneByte(lr=0.05, run=9))
    foreign = rounds(other, 4)[-1].state
    client = net.population.client(0, net.memories.states[0])
    with pytest.raises(ValueError, match="does not lead to the head"):
        net.population.strategy.apply(client, other.population.strategy.download(foreign, 0, Purpose.TRAIN))  # type: ignore[arg-type]
    strategy = net.population.strategy
    lacking = telling(Transcript.restore(state["ledger"], kept(state)[0]), state["sums"], 3)  # type: ignore[index]
    with pytest.raises(ValueError, match="does not lead to the head"):
        strategy.apply(net.population.client(0, {}), lacking)


# 11


def test_a_digest_sees_the_last_bit_of_any_number() -> None:
    vector = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    known = {digest(vector)}
    for place in (0, 1, 31_337, 50_000, 99_999):
        changed = vector.clone()
        changed[place] = torch.nextafter(changed[place], torch.tensor(math.inf))
        known.add(digest(changed))
    assert len(known) == 6


# 12: which scaling needs no other step size when peers come and go


def test_the_best_step_size_of_sums_is_the_same_for_any_number_of_peers_and_of_means_is_not() -> None:
    """On a quadratic: sum 1 / (n + d + 1), root as many times the root of n, mean n times; d = 100 here."""
    size, rounds, runs, most = 100, 40, 3, 16
    rows = [
        [
            directions(SIGNS, meaning(size, run=run).origin(peer, round, 0), size)[0]
            for round in range(rounds)
            for peer in range(most)
        ]
        for run in range(runs)
    ]
    z = torch.stack([torch.stack(row) for row in rows]).view(runs, rounds, most, size)

    def loss_after(scaling: str, lr: float, peers: int) -> float:
        """Of ``|x|^2 / 2`` from a distance of 1, with one probe of each peer in a step, averaged over the runs."""
        strategy = OneByte(lr=lr, scaling=scaling)  # type: ignore[arg-type]
        step = strategy.steps.at(1, peers) * 2.0**-strategy.steps.bits
        x = torch.full((runs, size), size**-0.5, dtype=torch.float64)
        for round in range(rounds):
            some = z[:, round, :peers]
            x -= step * torch.einsum("rp,rpd->rd", torch.einsum("rpd,rd->rp", some, x), some)
        return float(x.square().sum())

    def best(scaling: str, peers: int) -> float:
        return min((0.02 * 2**power for power in range(-5, 5)), key=lambda lr: loss_after(scaling, lr, peers))

    one = best("sum", 1)
    assert one == best("mean", 1) == best("root", 1)
    assert 0.5 <= best("sum", most) / one <= 1
    assert best("root", most) / one in (2, 4)
    assert best("mean", most) / one in (8, 16)


# Sums, steps, bounds


@given(st.lists(st.integers(0, 2**40), max_size=5), st.sampled_from([torch.int32, torch.int64]))
def test_a_commit_and_its_bytes_are_one(rounds: list[int], kind: torch.dtype) -> None:
    for round in rounds:
        commit = Commit(round, round % 1000, {round % 7: b"abc", 2**31 + round % 11: b""})
        assert Commit.unpack(commit.pack()) == commit
        with pytest.raises(ValueError):
            Commit.unpack(commit.pack() + b"\0")
        with pytest.raises(ValueError):
            Commit.unpack(commit.pack()[:-1])


def test_sums_become_64_bits_when_they_must_and_are_the_same() -> None:
    size, huge = 40, 2**29
    entries = [(Origin(1, 0, sequence), [huge]) for sequence in range(64)]
    wide = Sums(torch.zeros(size, dtype=torch.int64), 0)
    wide.add(SIGNS, entries)
    narrow = Sums.zeros(size)
    narrow.add(SIGNS, entries[:2])
    assert narrow.values.dtype == torch.int32
    narrow.add(SIGNS, entries[2:])
    assert wide.values.abs().max() > torch.iinfo(torch.int32).max
    assert narrow.values.dtype == torch.int64
    assert torch.equal(wide.values, narrow.values)


def test_a_bound_that_is_too_careful_is_looked_at_again() -> None:
    sums = Sums.zeros(5)
    for sequence in range(400):
        entry = (Origin(1, 0, sequence), [2**28])
        sums.add(SIGNS, [entry])
        sums.add(SIGNS, [(entry[0], [-(2**28)])])
    assert sums.values.dtype == torch.int32
    assert not sums.values.any()


def test_what_is_beyond_64_bits_halts() -> None:
    sums = Sums(torch.full((3,), 2**63 - 10, dtype=torch.int64))
    with pytest.raises(RunHalted, match="overflow"):
        sums.add(SIGNS, [(Origin(1, 0, 0), [11])])
    assert (sums.values == 2**63 - 10).all()


@settings(max_examples=30)
@given(st.floats(1e-9, 10.0))
def test_the_step_size_is_kept_to_a_percent(lr: float) -> None:
    for scaling, most in (("sum", 0.008), ("mean", 0.0002)):
        bits, whole = (steps := Steps(lr, scaling)).bits, steps.whole
        assert abs(Fraction(whole) / 2**bits / Fraction(lr) - 1) <= most


def test_the_step_size_rises_stays_and_falls_in_whole_numbers() -> None:
    strategy = OneByte(lr=0.5, warmup=4, horizon=12)
    whole = OneByte(lr=0.5).steps.at(1, 64)
    assert whole == 64
    assert [strategy.steps.at(round, 64) for round in range(1, 14)] == [16, 32, 48, 64, 56, 48, 40, 32, 24, 16, 8, 0, 0]
    assert OneByte(lr=0.5, scaling="mean").steps.at(9, 64) == 2**20 // 64
    assert OneByte(lr=0.5, scaling="root").steps.at(9, 64) == 2**20 // 8
    assert OneByte(lr=0.5, scaling="mean", horizon=100).steps.at(99, 10**9) == 1, (
        "not nothing, before it is to be nothing"
    )
    assert OneByte(lr=0.5, warmup=1000).steps.at(1, 8) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"epsilon": math.inf}, "epsilon must be positive"),
        ({"probes": 0}, "probes must be 1 to 2048"),
        ({"probes": 2049}, "probes must be 1 to 2048"),
        ({"coding": "nibble"}, "coding must be byte, bit, sign, float"),
        ({"scaling": "max"}, "scaling must be sum, root, mean"),
        ({"rounding": "up"}, "rounding must be nearest, stochastic"),
        ({"directions": "cauchy"}, "directions must be rademacher, gaussian"),
        ({"warmup": 5, "horizon": 5}, "horizon=5: must be after warmup=5"),
        ({"pool": -1}, "pool must be 0 to"),
        ({"run": -1}, "run must be 0 to .*, not -1, the seed"),
        ({"lr": 1e-12, "coding": "float"}, "lr=1e-12: too small for coding=float"),
        ({"lr": 1e20}, "too large"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        OneByte(**wrong)  # type: ignore[arg-type]


def test_bad_codes_are_dropped_with_a_reason() -> None:
    net = network(OneByte(coding="sign"))
    strategy = net.population.strategy
    expected = strategy.expects(begin(net), 0)
    for codes, reason in (([57] * 8, "codes that are never sent"), ([128] * 8, "none of its losses is finite")):
        with pytest.raises(ValueError, match=reason):
            strategy.form.decode(Payload({"codes": {"codes": torch.tensor(codes, dtype=torch.uint8)}}), expected)


WAYS = [{"directions": "gaussian"}, {"rounding": "stochastic"}, {"pool": 3}, {"probes": 20}]


@pytest.mark.parametrize("setting", WAYS)
def test_every_way_learns(setting: dict[str, object]) -> None:
    net = network(OneByte(lr=0.003, **setting))  # type: ignore[arg-type]
    done = rounds(net, 10, evaluate_every=10, evaluate_first=True)
    assert done[-1].row["loss"] < 0.9 * done[0].row["before"]["loss"]


@pytest.mark.parametrize("attack", ["alie", "rider_delta"])
def test_who_lies_about_a_model_is_told_that_there_is_none(attack: str, tmp_path: Path, capsys: Capture) -> None:
    settings = ["strategy=onebyte", "model=logistic", "partition.clients=3", "rounds=2", "workers=0"]
    assert fedshare("run", f"attack={attack}", "attack.adversaries=1", f"folder={tmp_path / 'run'}", *settings) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedshare: ")]
    assert line.startswith("fedshare: attack: ")


def test_a_sparse_upload_is_dropped_and_a_missing_ledger_is_missed(tmp_path: Path) -> None:
    strategy, like = OneByte(), torch.zeros(8, dtype=torch.uint8)
    expected = {"codes": {"codes": like}}
    upload = Payload({"codes": {"codes": like.to_sparse()}}, {"examples": 1.0})
    assert "not a dense tensor" in str(flaw(strategy.form.decode(upload, expected), expected, 9))
    settings = ["strategy=onebyte", "model=logistic", "partition.clients=3", "rounds=2", "workers=0"]
    assert fedshare("run", f"folder={tmp_path / 'run'}", *settings) == 0
    (tmp_path / "run" / "ledger").unlink()
    same, sentence = verify(RunFolder.open(tmp_path / "run"))
    assert not same
    assert "round 1: ledger is missing" in sentence


@pytest.mark.process
@needs("opacus")
def test_private_training_is_refused_in_one_line_by_worker_processes_too(tmp_path: Path, capsys: Capture) -> None:
    settings = ["strategy=onebyte", "client=dpsgd", "model=logistic", "partition.clients=3", "rounds=2", "workers=2"]
    assert fedshare("run", f"folder={tmp_path / 'run'}", *settings) == 2
    assert "client.privacy: protects what `fit` makes" in capsys.readouterr().err
