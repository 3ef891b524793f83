"""What a client may say of itself, and what becomes of an upload that is finite and of no use."""

import dataclasses
import io
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quotas import Liar
from test_stream import serving, wait_until
from torch import Tensor

import world
from deployed import Deployment, assert_equal, certificates, flower_app, simulated
from fedshare.errors import RunHalted, UserError
from fedshare.experiments import beginnings
from fedshare.experiments.cli import main
from fedshare.experiments.config import application, build, compose
from fedshare.experiments.hosts import agreement, federation
from fedshare.experiments.running.execute import resume, simulation
from fedshare.experiments.running.rounds import rounds
from fedshare.network import Purpose, Quotas
from fedshare.payload import Payload
from fedshare.peers.gathering import Gathering
from fedshare.population import Computed
from fedshare.population.own import Elsewhere
from fedshare.report.best import Best
from fedshare.report.console import Progress
from fedshare.report.summary import summary
from fedshare.rounds import Round, Schedule, run_server
from fedshare.rounds.influence import Watch, norm
from fedshare.rounds.rows import test_flaw as _test_flaw
from fedshare.rules import Bulyan, ByzFL, Krum, Median, MultiKrum, NearestNeighbourMixing, Rule, TrimmedMean
from fedshare.rules.rule import weakness
from fedshare.runs import RunFolder, checkpoint, verify
from fedshare.simulation import Declared, Population, Simulation
from fedshare.simulation.peers import Player
from fedshare.strategies.cfl import CFL
from fedshare.strategies.fltrust import FLTrust
from fedshare.strategies.robust import Robust
from fedshare.tasks import Classification, LanguageModel, Regression, Task
from fedshare.tasks.metrics import summarise
from fedshare.transport.flower.apps import client_app
from fedshare.transport.flower.inprocess import InProcessGrid
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Terms
from fedshare.transport.flower.stream import StreamGrid
from optional import extra

LIAR = 2
Lie = Callable[[Payload], Payload]
Rows = list[dict[str, Any]]


class Hostile(world.Altered):
    """A simulation whose client `LIAR` answers otherwise, in some rounds."""

    def __init__(self, inner: Simulation, lie: Lie, purpose: Purpose, rounds: list[int] | None = None) -> None:
        super().__init__(inner, {})
        self.lie, self.purpose, self.rounds = lie, purpose, rounds

    def altered(
        self, purpose: Purpose, round: int, downloads: dict[int, Payload], answers: dict[int, Payload]
    ) -> dict[int, Payload]:
        if purpose is self.purpose and LIAR in answers and (self.rounds is None or round in self.rounds):
            answers[LIAR] = self.lie(answers[LIAR])
        return answers


def played(lie: Lie | None, purpose: Purpose, name: str = "fedavg", **schedule: Any) -> list[Round]:
    made = world.build(name)
    network = Hostile(Simulation(lambda: made), lie or (lambda answer: answer), purpose)
    sizes = {name: {c: getattr(s, each) for c, s in enumerate(made.shares)} for name, each in BOUNDS.items()}
    plan = Schedule(**{"rounds": 2, "seed": 0, **sizes} | schedule)
    return list(run_server(made.strategy, network, made.strategy.init(made.scratch.initial, made.clients), plan))


BOUNDS = {"sizes": "size", "tests": "tests", "validations": "validations"}


def count(number: int) -> Tensor:
    return torch.tensor(number)


def real(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


def claiming(**sums: Tensor) -> Lie:
    return lambda answer: Payload({"sums": answer.tensors["sums"] | sums}, answer.metrics)


# What a client says of its test.


TESTS = {  # everyone has 4 test examples
    "a million examples": ({"examples": count(10**6), "correct": count(10**6)}, "claims 1000000 examples, not 0 to 4"),
    "one example more": ({"examples": count(5), "correct": count(5)}, "claims 5 examples, not 0 to 4"),
    "more right than there are": ({"correct": count(5)}, "sums: correct is 5, not 0 to 4"),
    "fewer than none": ({"examples": count(-4), "correct": count(-4)}, "claims -4 examples, not 0 to 4"),
    "a loss below 0": ({"loss": real(-1e9)}, "sums: loss is -1e+09, which is below 0"),
    "a weight below 0": ({"weight": real(-3.9)}, "sums: weight is -3.9, not a number from 0"),
    "an endless weight": ({"weight": real(math.inf)}, "sums: weight is inf, not a number from 0"),
    "no weight at all": ({"weight": real(math.nan)}, "sums: weight is nan, not a number from 0"),
    "a loss over other targets": ({"weight": real(1e12)}, "sums: weight is 1e+12, not 0 to 4"),
}


@pytest.mark.parametrize("what", TESTS)
def test_a_test_that_the_clients_examples_cannot_give_is_left_out_with_the_reason(what: str) -> None:
    sums, reason = TESTS[what]
    honest, lying = (played(lie, Purpose.EVALUATE) for lie in (None, claiming(**sums)))
    for one, other in zip(honest, lying, strict=True):
        assert other.row["untested"] == {str(LIAR): reason}
        assert other.row["tested"] == world.CLIENTS - 1
        per_client = {id: value for id, value in one.row["per_client"]["accuracy"].items() if id != str(LIAR)}
        assert other.row["per_client"]["accuracy"] == per_client
        assert other.row["accuracy"] == pytest.approx(sum(per_client.values()) / len(per_client))
        assert other.link == one.link


def test_examples_that_validate_are_bounded_apart() -> None:
    def more(answer: Payload) -> Payload:
        return Payload(answer.tensors | {"validation": answer.tensors["sums"]}, answer.metrics)

    for done in played(more, Purpose.EVALUATE):
        assert done.row["untested"] == {str(LIAR): "validation: claims 4 examples, not 0 to 0"}
        assert "validation" not in done.row


@settings(max_examples=200)
@given(
    st.integers(-(2**62), 2**62) | st.integers(-9, 9),
    st.integers(-(2**62), 2**62) | st.integers(-9, 9),
    st.floats(),
    st.floats(),
)
def test_whatever_one_client_claims_it_moves_the_accuracy_by_no_more_than_its_share(
    examples: int, correct: int, loss: float, weight: float
) -> None:
    task = Classification()
    honest = {client: world.tested(0.25, 1.0, 4) for client in range(4)}
    lie = {"examples": count(examples), "correct": count(correct), "loss": real(loss), "weight": real(weight)}
    schedule = Schedule(rounds=1, seed=0, tests=dict.fromkeys(range(5), 4))
    reason = _test_flaw(Payload({"sums": lie}), task, task.zeros(), schedule, 4)
    found = summarise(task, honest if reason else honest | {4: lie})
    assert 4 / 20 <= found["accuracy"] <= (4 + 4) / 20
    assert 0.25 * 4 / 5 <= found["accuracy_mean"] <= (0.25 * 4 + 1) / 5
    assert 0 <= found["loss"] < math.inf
    assert all(0 <= value <= 1 for value in found["per_client"]["accuracy"].values())
    assert (reason is None) == (0 <= correct <= examples <= 4 and not loss < 0 and 0 <= weight <= examples)


@pytest.mark.parametrize(
    ("lie", "purpose", "moved"),
    [
        (claiming(correct=count(4), loss=real(0.0)), Purpose.EVALUATE, "accuracy"),
        (claiming(correct=count(0), loss=real(1e30)), Purpose.EVALUATE, "accuracy"),
        (lambda up: Payload(up.tensors, up.metrics | {"train_loss": 1e30}), Purpose.TRAIN, "train_loss"),
    ],
    ids=["all right", "all wrong", "a training loss"],
)
@pytest.mark.parametrize("name", ["fedavg", "krum", "rffl", "fedcac"])
def test_a_lie_about_a_test_or_a_training_loss_moves_a_number_and_no_model(
    lie: Lie, purpose: Purpose, moved: str, name: str
) -> None:
    honest, lying = played(None, purpose, name), played(lie, purpose, name)
    assert [done.link for done in lying] == [done.link for done in honest]
    assert any(one.row[moved] != other.row[moved] for one, other in zip(honest, lying, strict=True))
    for one, other in zip(honest, lying, strict=True):
        assert abs(one.row["accuracy_mean"] - other.row["accuracy_mean"]) <= 1 / world.CLIENTS + 1e-12


@pytest.mark.parametrize("claimed", [17, 21, 10**6])  # client 2 has 16, the largest 24
def test_training_examples_are_bounded_by_the_clients_own(claimed: int) -> None:
    for done in played(lambda up: Payload(up.tensors, up.metrics | {"examples": claimed}), Purpose.TRAIN):
        assert done.row["dropped"] == {str(LIAR): f"claims {claimed} examples, not 1 to 16"}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("purpose", Purpose)
def test_a_loss_that_is_not_finite_leaves_the_mean_and_is_counted(loss: float, purpose: Purpose) -> None:
    if purpose is Purpose.TRAIN:
        lie: Lie = lambda up: Payload(up.tensors, up.metrics | {"train_loss": loss})  # noqa: E731
        name = "train_loss"
    else:
        if loss < 0:
            return  # that is below 0
        lie, name = claiming(loss=real(loss)), "loss"
    stream = io.StringIO()
    rows = [done.row for done in played(lie, purpose)]
    with Progress(rounds=2, stream=stream) as progress:
        for row in rows:
            assert row["not_finite"] == {name: [LIAR]}
            assert math.isfinite(row["loss"])
            assert math.isfinite(row["train_loss"])
            progress.row(row)
    assert stream.getvalue().count("loss not finite 1") == 2
    assert "losses    not finite, and in no mean: of client 2 (2x)" in summary(rows, "x")


def test_honest_rows_say_nothing_of_it() -> None:
    bounded, free = played(None, Purpose.TRAIN), played(None, Purpose.TRAIN, tests={}, validations={})
    for one, other in zip(bounded, free, strict=True):
        assert one.row | {"seconds": 0} == other.row | {"seconds": 0}
        assert not {"not_finite", "weakened"} & one.row.keys()


def test_a_headline_made_of_the_loss_does_without_those_that_are_not_finite() -> None:
    good = {client: world.tested(0.5, 2.0, 4) for client in range(3)}
    for task in (LanguageModel(headline="perplexity"), Classification(headline="loss")):
        name = task.compared
        odd = summarise(task, good | {3: world.tested(0.5, math.nan, 4)})
        assert {key: odd[key] for key in (name, f"{name}_mean", f"{name}_worst10")} == {
            key: value for key, value in summarise(task, good).items() if key.startswith(name)
        }
        assert odd["not_finite"] == {"loss": [3]}
        assert math.isnan(summarise(task, {3: world.tested(0.5, math.nan, 4)})[f"{name}_worst10"])


def test_the_best_round_is_none_in_which_somebody_has_diverged() -> None:
    made, best = world.build("fedavg"), Best("loss", False)

    def more(answer: Payload) -> Payload:
        return Payload(
            {"sums": answer.tensors["sums"], "validation": answer.tensors["sums"] | {"loss": real(math.nan)}}
        )

    class Validating(world.Altered):
        def altered(
            self, purpose: Purpose, round: int, downloads: dict[int, Payload], answers: dict[int, Payload]
        ) -> dict[int, Payload]:
            if purpose is Purpose.EVALUATE:
                return {c: Payload(a.tensors | {"validation": a.tensors["sums"]}) for c, a in answers.items()}
            return answers

    network = Hostile(Validating(Simulation(lambda: made), {}), more, Purpose.EVALUATE, [2])  # type: ignore[arg-type]
    state = made.strategy.init(made.scratch.initial, made.clients)
    rows = [done.row for done in run_server(made.strategy, network, state, Schedule(rounds=2, seed=0))]
    assert [row["validation"]["clients"] for row in rows] == [5, 4]
    assert [best.see(row) for row in rows] == [True, False]


def test_sums_of_metrics_are_held_to_what_counts_can_give() -> None:
    extra("torchmetrics")
    from torchmetrics import Accuracy, F1Score, MeanSquaredError, R2Score
    from torchmetrics.classification import MulticlassMatthewsCorrCoef

    three = {"task": "multiclass", "num_classes": 3}
    chosen = {"top": Accuracy(**three, average="micro"), "f1": F1Score(**three, average="macro")}
    task: Task = Classification(metrics=chosen | {"mcc": MulticlassMatthewsCorrCoef(num_classes=3)})
    outputs, targets = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    good = task.sums(outputs, targets)
    assert task.flaw(good, 8) is None
    assert task.flaw(task.zeros(), 0) is None
    many = torch.full_like(good["top.tp"], 80)
    assert task.flaw(good | {"top.tp": many}, 8) == "top.tp counts 80 to 80 in all, not 0 to 8"
    assert str(task.flaw(good | {"f1.tp": good["f1.tp"] + 8}, 8)).endswith(" in all, not 0 to 8")
    assert "f1.fp counts -3 to " in str(task.flaw(good | {"f1.fp": good["f1.fp"] * 0 - 3}, 8))
    assert str(task.flaw(good | {"mcc.confmat": torch.eye(3).double() * 8}, 8)).startswith("mcc.confmat counts 0 to 24")
    numbers = Regression(metrics={"mse": MeanSquaredError(), "r2": R2Score()})
    good = numbers.sums(torch.randn(8, 1), torch.randn(8))
    assert numbers.flaw(good, 8) is None
    broken = good | {"mse.sum_squared_error": real(math.nan)}
    assert numbers.flaw(broken, 8) == "mse.sum_squared_error holds NaN or infinity"
    assert numbers.flaw(good | {"mse.sum_squared_error": real(-1.0)}, 8) == "mse is -0.125, and cannot be better than 0"
    better = good | {"r2.residual": -good["r2.residual"] * 100}
    assert "and cannot be better than 1" in str(numbers.flaw(better, 8))


@pytest.mark.parametrize("overrides", [[], ["validation=0.2"], ["partition=iid", "validation=0.1"]])
def test_the_bounds_of_a_config_are_those_of_its_clients(overrides: list[str]) -> None:
    config = compose.resolved(["data=digits", "model=logistic", "partition.clients=3", *overrides])
    made = build.population_of(config)
    schedule = build.schedule(config, made)
    for client in range(3):
        share = made.shares[client]
        assert schedule.most_tested(client) == len(share.test)
        assert schedule.most_validated(client) == (0 if share.validation is None else len(share.validation))
        assert schedule.most(client) == len(share.train)


def test_clients_with_data_of_their_own_declare_their_tests_once(tmp_path: Path) -> None:
    declared = Declared(3, 100)
    declared.keep(tmp_path / "declared.json")
    declared.declare(0, 40, 10, 4)
    for counts, said in {
        (40, 11, 4): "joined this run with 10 test examples, and has 11 now",
        (40, 10, 0): "joined this run with 4 validation examples, and has 0 now",
    }.items():
        with pytest.raises(ValueError, match=said):
            declared.declare(0, *counts)
    with pytest.raises(ValueError, match="101 test examples; allowed are 0 to 100"):
        declared.declare(1, 40, 101)
    later = Declared(3, 100)
    later.recall(tmp_path / "declared.json")
    assert (later.sizes, later.tests, later.validations) == ({0: 40}, {0: 10}, {0: 4})
    (tmp_path / "declared.json").write_text('{"0": 40, "1": 50}')  # of an older version
    older = Declared(3, 100)
    older.recall(tmp_path / "declared.json")
    assert (older.sizes, older.tests) == ({0: 40, 1: 50}, {})
    older.keep(tmp_path / "declared.json")
    older.declare(1, 50, 9, 0)
    assert (older.sizes, older.tests) == ({0: 40, 1: 50}, {1: 9})
    again = Declared(3, 100)
    again.recall(tmp_path / "declared.json")
    assert (again.sizes, again.tests) == ({0: 40, 1: 50}, {1: 9})


@dataclasses.dataclass(frozen=True)
class Boasting(Population):
    """Of client 2, ten times the test that it has."""

    def answer(self, purpose: Purpose, round: int, id: int, *rest: Any) -> Any:
        told = super().answer(purpose, round, id, *rest)
        if purpose is Purpose.TRAIN or id != LIAR:
            return told
        sums = {name: 10 * value for name, value in told.payload.tensors["sums"].items()}
        return replace(told, payload=Payload({"sums": sums}, told.payload.metrics))


def test_a_server_without_the_data_holds_clients_to_what_they_declared(tmp_path: Path) -> None:
    made, declared = world.build("fedavg"), Declared(world.CLIENTS, 100)
    boasting = Boasting(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})
    grid = InProcessGrid(client_app(lambda *_: ("config", boasting)), world.CLIENTS, {}, {"state-dir": str(tmp_path)})
    network = FlowerNetwork(grid, Terms.of("config", made), bytes(8), 60, world.CLIENTS, declared=declared)
    plan = Schedule(rounds=2, seed=0, sizes=declared.sizes, tests=declared.tests, validations=declared.validations)
    state = made.strategy.init(made.scratch.initial, made.clients)
    rows = [done.row for done in run_server(made.strategy, network, state, plan)]
    assert declared.tests == dict.fromkeys(range(world.CLIENTS), 4)
    assert [row["untested"] for row in rows] == [{str(LIAR): "claims 40 examples, not 0 to 4"}] * 2


@pytest.mark.parametrize(
    ("kind", "lie", "told", "own"),
    [
        ("examples", 17, "17 training", 16),
        ("examples", 15, "15 training", 16),
        ("examples", 2**64 - 1, f"{2**64 - 1} training", 16),
        ("tests", 2**63, f"{2**63} test", 4),
        ("tests", 0, "0 test", 4),
        ("validation", 1, "1 validation", 0),
    ],
)
def test_who_joins_with_other_counts_than_the_servers_is_refused_with_both_numbers(
    kind: str, lie: int, told: str, own: int
) -> None:
    made, said = world.build("fedavg"), list[str]()
    counts = {c: {"examples": share.size, "tests": share.tests} for c, share in enumerate(made.shares)}
    assert counts[LIAR] == {"examples": 16, "tests": 4}
    with serving(clients=world.CLIENTS) as server:
        network = FlowerNetwork(
            *(StreamGrid(server), Terms.of("config", made), bytes(8), world.PATIENCE, world.CLIENTS, 2, world.PATIENCE),
            say=said.append,
            declared=Computed(made.shares),
        )
        for client in (0, 1, LIAR):
            Liar(server.address, client, **counts[client] | ({kind: lie} if client == LIAR else {}))
        wait_until(lambda: len(network.client_ids()) >= 2 and bool(network.refused), "two take part, one is refused")
        reason = f"it says that it has {told} examples; by the server's count it has {own}"
        assert list(network.refused.values()) == [reason]
        assert network.client_ids() == [0, 1]
        assert sorted(network.attendance) == [0, 1]
    assert next(line for line in said if "does not take part" in line).endswith(f": {reason}")


def test_a_server_that_has_the_partition_begins_no_run_on_counts_that_contradict_it(tmp_path: Path) -> None:
    config = [*SMALL, f"folder={tmp_path / 'run'}"]
    text, honest = agreement.population({"overrides": " ".join(SMALL)}, {})
    real_shares = list(honest.shares)
    app = client_app(lambda *_: (text, replace(honest, shares=[*real_shares[:LIAR], Elsewhere(10**12, 10**12)])))
    grid = InProcessGrid(app, 3, {}, {"state-dir": str(tmp_path / "state")})
    with pytest.raises(UserError) as refused:
        federation.serve(grid, {"overrides": " ".join(config), "wait": 5.0})
    own = real_shares[LIAR].size
    assert f"it says that it has {10**12} training examples; by the server's count it has {own}" in str(refused.value)
    assert not (tmp_path / "run").exists()


# Aggregates.


def filled(number: float) -> Lie:
    def lie(upload: Payload) -> Payload:
        tensors = {
            group: {name: torch.full_like(t, number) if t.is_floating_point() else t for name, t in named.items()}
            for group, named in upload.tensors.items()
        }
        return Payload(tensors, upload.metrics)

    return lie


def in_rounds(lie: Lie, rounds: list[int], name: str = "fedavg", **schedule: Any) -> Iterator[Round]:
    made = world.build(name)
    network = Hostile(Simulation(lambda: made), lie, Purpose.TRAIN, rounds)
    plan = Schedule(**{"rounds": 4, "seed": 0} | schedule)
    return run_server(made.strategy, network, made.strategy.init(made.scratch.initial, made.clients), plan)


@pytest.mark.parametrize("number", [3e38, -3e38, 1e20])
@pytest.mark.parametrize("name", ["fedavg", "fedcac", "cfl", "foolsgold", "ditto"])
def test_an_aggregate_of_no_use_halts_its_own_round_and_names_who_moved_it(name: str, number: float) -> None:
    rounds = in_rounds(filled(number), [2], name)
    assert next(rounds).number == 1
    with pytest.raises(RunHalted) as halted:
        next(rounds)
    said = str(halted.value)
    assert said.startswith("round 2: the aggregate is of no use, for ")
    assert "the largest updates are those of client 2 (norm " in said
    assert "nan" not in said
    assert "\n" not in said


class Without(Hostile):
    """The same simulation, in which there is no such client."""

    def client_ids(self) -> list[int]:
        return [id for id in super().client_ids() if id != LIAR]


@pytest.mark.parametrize("name", ["fedavg", "ditto", "fedcac"])
def test_a_client_whose_uploads_are_all_dropped_changes_no_digest(name: str) -> None:
    """Not by what it says of its memory either, which anybody may make."""
    links = []
    for kind in (Hostile, Without):
        made = world.build(name)
        network = kind(Simulation(lambda made=made: made), filled(math.nan), Purpose.TRAIN)
        state = world.begin(made)
        rounds = list(run_server(made.strategy, network, state, Schedule(rounds=3, seed=0)))
        assert all(str(LIAR) in done.row["dropped"] for done in rounds) == (kind is Hostile)
        links.append([done.link for done in rounds])
    assert [link.digest for link in links[0]] == [link.digest for link in links[1]]
    assert [list(link.dropped) for link in links[0]] == [[str(LIAR)]] * 3


def test_a_checkpoint_is_held_to_the_memory_of_who_was_dropped_too(tmp_path: Path) -> None:
    run = simulated(
        tmp_path / "run", *SMALL, "strategy=ditto", "attack=non_finite", "attack.adversaries=[2]", "rounds=3"
    )
    links = RunFolder(run).links()
    assert [list(link.dropped) for link in links] == [["2"]] * len(links)
    assert verify(RunFolder(run))[0]
    text = (run / "digests.jsonl").read_text()
    (run / "digests.jsonl").write_text(text.replace(next(iter(links[-1].dropped["2"].values())), 64 * "0"))
    same, why = verify(RunFolder(run))
    assert not same
    assert f"round {len(links)}: client 2: " in why


def test_overflow_in_the_average_itself_is_found() -> None:
    """All weights at the largest float: their mean may be beyond it."""
    good = {"params": {"w": torch.zeros(2, dtype=torch.float64)}}
    endless = {"params": {"w": torch.full((2,), math.inf, dtype=torch.float64)}}
    sent = {c: Payload({"params": good["params"]}) for c in range(3)}
    uploads = {**sent, 2: Payload({"params": {"w": torch.full((2,), 1e308, dtype=torch.float64)}})}
    with pytest.raises(RunHalted, match=r"holds NaN or infinity; .* client 2 \(norm "):
        Watch().check(1, good, endless, uploads, sent)


def test_a_strategys_own_infinity_is_none_of_its_business() -> None:
    before = {"best": torch.tensor(math.inf), "w": torch.zeros(2)}
    after = {"best": torch.tensor(math.inf), "w": torch.ones(2)}
    Watch().check(1, before, after, {}, {})


def test_what_only_shows_a_round_later_is_still_somebodys() -> None:
    with pytest.raises(RunHalted, match=r"^round 3: ") as halted:
        list(in_rounds(filled(1e15), [2]))
    assert "the largest updates in round 2 were those of client 2 (norm " in str(halted.value)


def test_suspects_are_those_of_the_round_that_made_the_values_large() -> None:
    watch, state = Watch(), {"params": {"w": torch.ones(2)}}
    for round, value in ((1, 1.0), (2, 1e4), (3, 1e5), (4, 1e6)):
        uploads = {client: Payload({"params": {"w": torch.full((2,), value * client)}}) for client in (0, 1)}
        after = {"params": {"w": torch.full((2,), value)}}
        watch.check(round, state, after, uploads, {0: Payload(), 1: Payload()})
        state = after
    assert watch.suspects.startswith("the largest updates in round 2 were those of client 1 (norm 1.41e+04")
    watch.check(5, state, {"params": {"w": torch.ones(2)}}, uploads, {0: Payload(), 1: Payload()})
    assert watch.suspects == "", "it has recovered"


@pytest.mark.parametrize("name", ["median", "krum", "geometric_median", "qffl", "rffl", "rffl_plus", "cgsv", "local"])
def test_who_withstands_it_goes_on(name: str) -> None:
    assert len(list(in_rounds(filled(3e38), [2], name))) == 4


def test_a_bound_on_the_norm_drops_who_is_beyond_it_with_the_reason() -> None:
    rows = [done.row for done in in_rounds(filled(3e38), [2, 3], max_norm_ratio=10.0)]
    assert [list(row["dropped"]) for row in rows] == [[], ["2"], ["2"], []]
    assert rows[1]["dropped"]["2"].startswith("its update has norm 3")
    assert rows[1]["dropped"]["2"].endswith(" times the median: max_norm_ratio=10")
    assert rows[1]["bytes_up_by_group"]["dropped"] > 0
    assert math.isfinite(rows[-1]["loss"])


def test_honest_clients_are_within_a_wide_bound_to_the_same_bits() -> None:
    plain, bounded = ([done.link for done in in_rounds(lambda up: up, [], max_norm_ratio=r)] for r in (None, 100.0))
    assert plain == bounded


@settings(max_examples=100)
@given(st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=9), st.floats(1, 1e6))
def test_no_bound_drops_half_of_the_clients(sizes: list[float], ratio: float) -> None:
    sent = {c: Payload({"update": {"w": torch.zeros(2)}}) for c in range(len(sizes))}
    uploads = {c: Payload({"update": {"w": torch.full((2,), size)}}) for c, size in enumerate(sizes)}
    out = Watch(ratio).outliers(uploads, sent)
    assert 2 * len(out) <= len(sizes)
    norms = {c: norm(uploads[c], sent[c]) for c in uploads}
    assert all(math.isfinite(value) for value in norms.values())
    assert all(norms[c] <= min(norms[o] for o in out) for c in norms.keys() - out.keys() if out)


def test_where_most_have_changed_nothing_the_bound_is_that_of_the_others() -> None:
    sizes = [0.0, 0.0, 0.0, 1.0, 1e20]
    sent = {c: Payload({"update": {"w": torch.zeros(2)}}) for c in range(5)}
    uploads = {c: Payload({"update": {"w": torch.full((2,), size)}}) for c, size in enumerate(sizes)}
    assert list(Watch(10.0).outliers(uploads, sent)) == [4]


def test_peers_halt_alike(tmp_path: Path) -> None:
    made = world.build("fedavg")

    class Gathered:
        def ids(self, round: int) -> list[int]:
            return [0, 1, 2]

        def gather(self, round: int, upload: Payload | None, quotas: Quotas | None = None) -> dict[int, Payload]:
            assert upload is not None
            return {0: upload, 1: upload, 2: filled(3e38)(upload)}

    network = Gathering(Gathered(), 0, Player(made, 0))
    state = made.strategy.init(made.scratch.initial, made.clients)
    with pytest.raises(RunHalted, match=r"round 1: the aggregate is of no use.*client 2"):
        list(run_server(made.strategy, network, state, Schedule(rounds=2, seed=0)))


def test_a_clustering_sees_who_is_far_away_in_float64() -> None:
    """Norms of 3e38 in float32 are endless, and directions by them nothing."""
    strategy = CFL(eps1=math.inf, eps2=0.0, warmup=0)
    state = strategy.init({"w": torch.zeros(2)}, world.CLIENTS)
    changes = {0: [1.0, 0.0], 1: [3e38, 0.0], 2: [-3e38, 3e38], 3: [-1.0, 1.0]}
    uploads = {c: Payload({"params": {"w": torch.tensor(w)}}, {"examples": 1.0}) for c, w in changes.items()}
    after = strategy.aggregate(state, 1, uploads)
    assert strategy.report(after)["clusters"] == [[0, 1], [2, 3]]


SMALL = ["data=digits", "model=logistic", "partition.clients=3", "client.epochs=1", "checkpoint_every=5", "workers=0"]


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["fedavg", "ditto", "onebyte"])
def test_the_folder_keeps_the_round_before_and_resume_goes_on_to_the_same_bits(strategy: str, tmp_path: Path) -> None:
    overrides = [*SMALL, "rounds=4", f"strategy={strategy}"]
    simulated(tmp_path / "whole", *overrides)
    config = compose.resolved([*overrides, f"folder={tmp_path / 'run'}"])
    folder = RunFolder(tmp_path / "run")
    made = build.simulated(config)
    lie = filled(3e38) if strategy != "onebyte" else lambda up: (_ for _ in ()).throw(RunHalted("round 3: stopped"))
    with simulation(config, folder, made) as network:
        beginnings.create(folder, config, made)
        hostile = Hostile(network, lie, Purpose.TRAIN, [3])  # type: ignore[arg-type]
        with folder.lock(), pytest.raises(RunHalted) as halted:
            rounds(config, folder, hostile, made, None, None)
    assert halted.value.exit_code == 3
    assert str(halted.value).endswith(f"; {folder.path} keeps the rounds before")
    assert [row["round"] for row in folder.rows()] == [1, 2]
    assert checkpoint.rounds(folder.checkpoints) == [2]
    resume(str(folder.path))
    same, sentence = verify(folder, RunFolder(tmp_path / "whole"))
    assert same, sentence


# Rules that cannot withstand their f.


RULES: dict[str, tuple[Rule, int]] = {  # and how many updates it takes
    "trimmed mean": (TrimmedMean(2), 5),
    "krum": (Krum(2), 7),
    "multi-krum": (MultiKrum(2), 7),
    "bulyan": (Bulyan(2), 11),
    "mixing": (NearestNeighbourMixing(Median(), 2), 5),
    "mixing, then bulyan": (NearestNeighbourMixing(Bulyan(2), 2), 11),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_from_how_many_updates_on_it_withstands_its_f(name: str) -> None:
    rule, needed = RULES[name]
    for updates in range(1, needed):
        said = str(weakness(rule, updates))
        assert f"of {updates} updates withstands f=" in said
        assert said.endswith(f" adversaries, not 2: that takes {needed} updates")
    assert weakness(rule, needed) is None
    assert weakness(Median(), 1) is None
    assert weakness(lambda updates, centre: (updates[0], None), 1) is None, "of anybody's own rule nothing is known"


def test_byzfls_rules_are_held_to_a_majority() -> None:
    assert weakness(ByzFL("TrMean", {"f": 3}), 7) is None
    assert weakness(ByzFL("TrMean", {"f": 3}), 6) == (
        "ByzFL of 6 updates withstands f=2 adversaries, not 3: that takes 7 updates"
    )
    assert weakness(ByzFL("Median", {}, "NNM", {"f": 2}), 4) is not None
    assert weakness(ByzFL("Median"), 1) is None


REFUSED = {
    "bulyan of ten a round": (["strategy=bulyan", "strategy.rule.f=2", "partition.clients=20"], "Bulyan of 10 updates"),
    "krum of six": (["strategy=krum", "partition.clients=6"], "Krum of 6 updates withstands f=1 adversaries, not 2"),
    "trimmed mean of four": (["strategy=trimmed_mean", "clients_per_round=4"], "TrimmedMean of 4 updates"),
    "newcomers do not count": (["strategy=krum", "partition.clients=8", "unseen=2"], "Krum of 6 updates"),
    "mixing of four": (["strategy=nnm", "clients_per_round=4"], "NearestNeighbourMixing of 4 updates"),
    "no such root": (["strategy=fltrust", "strategy.root=99"], "the root, client 99, is not among the clients"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_round_can_withstand_is_refused_before_there_is_a_folder(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, said = REFUSED[what]
    with pytest.raises(SystemExit) as ended:
        main(["run", "data=digits", "model=logistic", *overrides, "workers=0", f"folder={tmp_path / 'run'}"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"strategy: {said}" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_norm_ratio", "0.5", "max_norm_ratio=0.5: must be at least 1"),
        ("on_weakened", "stop", "on_weakened=stop: must be halt or note"),
    ],
)
def test_fields_out_of_range_are_refused(key: str, value: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose.resolved([f"{key}={value}"])


def test_cells_of_a_matrix_from_before_these_fields_are_still_found() -> None:
    from fedshare.experiments.commands import plan

    app = application.hydra(None)
    given = ["attacks=none", "defences=fedavg", "partitions=iid", "seeds=0"]
    for more in ([], ["max_norm_ratio=9"]):
        config, _ = plan.wanted(app, "matrix", [*given, *more])
        (cell,) = plan.plan(app, config)
        assert {"max_norm_ratio", "on_weakened"} & cell.config.keys() == ({"max_norm_ratio"} if more else set())


class Away(world.Altered):
    """Clients that are not there in round 2 and 3."""

    def __init__(self, inner: Simulation, away: set[int]) -> None:
        super().__init__(inner, {})
        self.round, self.away = 0, away

    def client_ids(self) -> list[int]:
        self.round += 1
        return [id for id in self.inner.client_ids() if id not in self.away or self.round not in (2, 3)]


def thinned(strategy: Any, away: set[int], **schedule: Any) -> Iterator[Round]:
    made = replace(world.build("fedavg"), strategy=strategy)
    state = strategy.init(made.scratch.initial, made.clients)
    return run_server(strategy, Away(Simulation(lambda: made), away), state, Schedule(rounds=4, seed=0, **schedule))


WEAKENED = {
    "krum": (Robust(rule=Krum(1)), {4}, "Krum of 4 updates withstands f=0 adversaries, not 1: that takes 5 updates"),
    "fltrust": (FLTrust(root=3), {3}, "the root, client 3, is not among the clients: the model stays as it is"),
}


@pytest.mark.parametrize("what", WEAKENED)
def test_a_round_with_fewer_clients_at_hand_says_so_or_halts(what: str) -> None:
    strategy, away, said = WEAKENED[what]
    rows = [done.row for done in thinned(strategy, away)]
    assert [row.get("weakened") for row in rows] == [None, said, said, None]
    stream = io.StringIO()
    with Progress(rounds=4, stream=stream) as progress:
        for row in rows:
            progress.row(row)
    assert stream.getvalue().count("weakened") == 2
    assert f"weakened  rounds 2 to 3: {said}" in summary(rows, "x")
    rounds = thinned(strategy, away, halt_weakened=True)
    assert next(rounds).number == 1
    with pytest.raises(RunHalted, match=f"round 2: {said}"):
        next(rounds)


def test_the_screen_says_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose.resolved(
        [*SMALL, "rounds=4", "strategy=trimmed_mean", "strategy.rule.f=1", f"folder={tmp_path}/run"]
    )
    folder, made = RunFolder(tmp_path / "run"), build.simulated(config)
    with simulation(config, folder, made) as network:
        beginnings.create(folder, config, made)
        with folder.lock():
            rounds(config, folder, Away(network, {2}), made, None, None)
    said = capsys.readouterr().out
    assert (
        said.count("! round 2: TrimmedMean of 2 updates withstands f=0 adversaries, not 1: that takes 3 updates") == 1
    )
    assert "! round 3: TrimmedMean" not in said


# The same over the stream.


HOSTILE = """
from dataclasses import fields, replace
import torch
from fedshare.app import server_app as server
from fedshare.experiments.hosts import agreement
from fedshare.transport.flower.apps import client_app
from fedshare.network import Purpose, Quotas
from fedshare.payload import Payload
from fedshare.peers.gathering import Gathering
from fedshare.simulation import Population

class Lying(Population):
    def answer(self, purpose, round, *rest):
        told = super().answer(purpose, round, *rest)
        tensors, metrics = dict(told.payload.tensors), dict(told.payload.metrics)
        {lie}
        return replace(told, payload=Payload(tensors, metrics))

def build(run_config, node_config):
    text, honest = agreement.population(run_config, node_config)
    return text, Lying(**{{field.name: getattr(honest, field.name) for field in fields(honest)}})

client = client_app(build)
"""
CLAIM = """
        if purpose is Purpose.EVALUATE and round == 1:
            sums = dict(tensors["sums"])
            tensors["sums"] = sums | dict.fromkeys(("examples", "correct"), torch.tensor(10**6))
        if purpose is Purpose.EVALUATE and round == 2:
            tensors["sums"] = dict(tensors["sums"]) | {"loss": torch.tensor(float("nan"), dtype=torch.float64)}
        if purpose is Purpose.TRAIN and round == 2:
            metrics["examples"] = 10**5
        if purpose is Purpose.TRAIN and round == 3:
            tensors["params"] = {name: torch.full_like(t, 3e38) for name, t in tensors["params"].items()}
"""
OVERFLOW = """
        if purpose is Purpose.TRAIN and round == 2:
            tensors["params"] = {name: torch.full_like(t, 3e38) for name, t in tensors["params"].items()}
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def deployment(tmp_path: Path, keys: Path) -> Iterator[Callable[..., Deployment]]:
    with ExitStack() as stack:
        yield lambda *overrides: stack.enter_context(Deployment(tmp_path, keys, *overrides))


@pytest.mark.process
def test_over_the_stream_what_a_client_claims_is_held_to_its_own_counts(
    deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    made = deployment(*SMALL, "rounds=3", "max_norm_ratio=50")
    hostile = flower_app(tmp_path / "hostile", HOSTILE.format(lie=CLAIM))
    server, clients = made.server(), [made.client(0), made.client(1), made.client(2, "--app", str(hostile))]
    assert server.wait() == 0, server.said + clients[2].said
    first, second, third = RunFolder(made.run).rows()
    own = build.population_of(compose.resolved(SMALL)).shares[2]
    assert first["untested"] == {"2": f"claims 1000000 examples, not 0 to {own.tests}"}
    assert second["untested"] == {}
    assert second["dropped"] == {"2": f"claims 100000 examples, not 1 to {own.size}"}
    assert second["not_finite"] == {"loss": [2]}
    assert second["loss"] < math.inf
    assert third["dropped"]["2"].startswith("its update has norm ")
    assert "client 2 dropped: its update has norm " in server.said


@pytest.mark.process
def test_over_the_stream_an_overflow_is_named_and_the_run_goes_on_without_the_liar(
    deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    overrides = [*SMALL, "rounds=3", "strategy=ditto"]
    simulated(tmp_path / "simulated", *overrides)
    made = deployment(*overrides)
    hostile = flower_app(tmp_path / "hostile", HOSTILE.format(lie=OVERFLOW))
    server, clients = made.server(), [made.client(0), made.client(1), made.client(2, "--app", str(hostile))]
    assert server.wait() == 3, server.said
    assert "round 2: the aggregate is of no use" in server.said
    assert "the largest updates are those of client 2 (norm " in server.said
    assert made.rounds() == 1
    assert [client.wait() for client in clients] == [3, 3, 3]
    server, clients = made.server(), [made.client(id) for id in range(3)]
    assert server.wait() == 0, server.said
    assert "after round 1" in server.said
    assert_equal(made.run, tmp_path / "simulated")
