"""A client that is away for three rounds: no mean that lacks it, or has it again, stands unmarked."""

import io
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compare import run as compared
from test_deployment import SMALL
from test_report import row

import world
from deployed import Deployment, certificates
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.report.best import Best
from fedshare.report.compare import comparison, comparison_csv, comparison_plot, last_evaluation, unlike
from fedshare.report.console import Progress
from fedshare.report.plots import progress_plot
from fedshare.report.rows import spans
from fedshare.report.summary import summary
from fedshare.rounds import Schedule, run_server
from fedshare.runs import RunFolder
from fedshare.simulation import Simulation

GONE = {3, 4, 5}  # the rounds in which client 2 is away
Rows = list[dict[str, Any]]


class Dying(world.Altered):
    """Client 2 is not there in some rounds."""

    def __init__(self, inner: Simulation) -> None:
        super().__init__(inner, {})
        self.round = 0

    def client_ids(self) -> list[int]:
        self.round += 1
        return [id for id in self.inner.client_ids() if id != 2 or self.round not in GONE]


def rows_of(clients: int | None) -> Rows:
    made = world.build("fedavg", parts=world.shares(3))
    schedule = Schedule(rounds=7, seed=0, max_examples=100, clients=clients)
    state = made.strategy.init(made.scratch.initial, made.clients)
    return [done.row for done in run_server(made.strategy, Dying(Simulation(lambda: made)), state, schedule)]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return rows_of(3)


def shown(rows: Rows, before: dict[str, Any] | None = None) -> list[str]:
    stream = io.StringIO()
    with Progress(rounds=7, stream=stream, before=before) as progress:
        for one in rows:
            progress.row(one)
    return stream.getvalue().splitlines()[1:]


@pytest.mark.parametrize("clients", [3, None])
def test_every_row_says_who_was_absent_and_how_many_were_tested(clients: int | None) -> None:
    for one in rows_of(clients):
        gone = one["round"] in GONE
        assert one["absent"] == [2] * gone
        assert (one["tested"], one["tested_of"]) == (2 if gone else 3, 3)
        assert one["untested"] == ({"2": "not connected"} if gone else {})
        assert ("2" in one["per_client"]["accuracy"]) != gone


def test_on_the_screen_every_number_over_other_clients_is_marked(rows: Rows) -> None:
    lines = shown(rows)
    assert [line for line in lines if line.startswith("! ")] == [
        "! round 3: tested 2 of 3 clients, without client 2 (not connected); "
        "means are over other clients than in round 2",
        "! round 4: tested 2 of 3 clients, without client 2 (not connected)",
        "! round 5: tested 2 of 3 clients, without client 2 (not connected)",
        "! round 6: means are over other clients than in round 5",
    ]
    table = [line for line in lines if not line.startswith("! ")]
    assert ["!" in line for line in table] == [False, False, True, True, True, True, False]
    assert all(line.count("!") in (0, 4) for line in table)
    assert ["absent 1, untested 1" in line for line in table] == [one["round"] in GONE for one in rows]


def test_a_run_that_goes_on_knows_who_was_tested_before(rows: Rows) -> None:
    assert shown(rows[5:], before=rows[4]) == shown(rows)[-3:]
    assert "!" not in "".join(shown(rows[5:]))


def test_a_round_without_a_test_is_compared_with_nothing() -> None:
    assert "!" not in "".join(shown([row(1), row(2)]))


def test_the_last_lines_say_which_rounds_are_about_others(rows: Rows) -> None:
    def said(some: Rows) -> list[str]:
        return [line for line in summary(some, "x").splitlines() if "clients" in line]

    first, others = said(rows)
    assert "!" not in first
    assert others == "tested    rounds 3 to 5: other clients, not to be compared with round 7"
    first, missing, others = said(rows[:5])
    assert f"{rows[4]['accuracy']:.4f}! in round 5" in first
    assert missing == "tested    2 of 3 clients, without client 2 (not connected)"
    assert others == "          rounds 1 to 2: other clients, not to be compared with round 5"
    assert "! in round 6" in said(rows[:6])[0], "over others than the round before"
    assert len(said(rows[:2])) == 1


def test_the_plot_is_cut_where_the_clients_change(rows: Rows, tmp_path: Path) -> None:
    texts = []
    for name, some in (("whole", rows[:2]), ("dying", rows)):
        progress_plot(some, tmp_path / name)
        texts.append((tmp_path / name).read_text())
    marks = ("gap: over other clients", "not all clients tested")
    assert [mark in text for text in texts for mark in marks] == [False, False, True, True]


def test_compare_marks_a_run_and_sums_up_who_was_tested_in_all(rows: Rows, tmp_path: Path) -> None:
    whole, less = (last_evaluation(some, name, name) for some, name in ((rows[:2], "whole"), (rows[:5], "less")))
    assert whole is not None
    assert less is not None
    assert unlike(whole, less) is None
    lines = comparison([whole, less]).splitlines()
    assert lines[:2] == [
        "whole  whole, round 2",
        "less   less, round 5! tested 2 of 3 clients, without client 2 (not connected)",
    ]
    client, mean, everything = (
        next(line.split() for line in lines if line.strip().startswith(name)) for name in ("2 ", "mean", "all")
    )
    assert client[-1] == "-"
    pair = [sum(run.accuracy[id] for id in (0, 1)) / 2 for run in (whole, less)]
    assert [cell.rstrip("*") for cell in mean[3:]] == [f"{value:.4f}" for value in pair]
    assert [cell[-1] for cell in everything[-2:]] == ["!", "!"]
    assert "! of the 2 clients tested in every run; all examples are each run's own" in lines
    assert lines[-1].startswith("whole is better than less for ")
    assert " of 2 clients" in lines[-1]
    assert comparison_csv([whole, less]).splitlines()[3].endswith(",")
    comparison_plot([whole, less], tmp_path / "c.svg")
    assert "! less: tested 2 of 3 clients, without client 2 (not connected)" in (tmp_path / "c.svg").read_text()


def test_compare_marks_runs_that_lack_the_same_client(rows: Rows) -> None:
    same = [found for name in "ab" if (found := last_evaluation(rows[:5], name, name))]
    assert [line.count("! tested 2 of 3") for line in comparison(same).splitlines()[:2]] == [1, 1]
    back = last_evaluation(rows[:6], "c", "c")
    assert back is not None
    assert back.remark == "means are over other clients than in round 5"


def test_compare_still_refuses_other_clients() -> None:
    a, b = compared("a", [0.1, 0.2], [10, 20]), compared("b", [0.1, 0.2], [10, 21])
    assert unlike(a, replace(b, untested=frozenset([0]))) is not None
    assert unlike(a, replace(b, untested=frozenset([1]))) is None


def test_the_best_round_is_none_that_lacks_a_client() -> None:
    best = Best("accuracy", True)
    for round, (value, clients) in enumerate([(0.5, 2), (0.4, 3), (0.9, 2), (0.45, 3)], 1):
        best.see({"round": round, "validation": {"accuracy": value, "clients": clients}})
    assert (best.round, best.value) == (4, 0.45)


def test_a_client_whose_test_raises_is_named_and_marked(tmp_path: Path) -> None:
    made = world.build("fedavg", parts=world.shares(3))

    class Broken(world.Altered):
        def altered(
            self, purpose: Purpose, round: int, downloads: dict[int, Payload], answers: dict[int, Payload]
        ) -> dict[int, Payload]:
            if purpose is Purpose.EVALUATE and round == 2:
                answers[1].tensors["sums"]["loss"] = torch.tensor(-1)  # of another type
            return answers

    state = made.strategy.init(made.scratch.initial, made.clients)
    network = Broken(Simulation(lambda: made), {})
    found = [done.row for done in run_server(made.strategy, network, state, Schedule(rounds=3, seed=0))]
    assert [list(one["untested"]) for one in found] == [[], ["1"], []]
    assert sum("!" in line for line in shown(found) if not line.startswith("! ")) == 2


def test_rounds_are_said_in_spans() -> None:
    assert spans([1, 2, 3, 5, 7, 8]) == "1 to 3, 5, 7 to 8"


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path, certificates(tmp_path / "keys"), *SMALL, "strategy=fedavg", "rounds=100000") as made:
        yield made


@pytest.mark.process
def test_in_a_deployment_a_killed_client_marks_its_rounds(deployment: Deployment) -> None:
    server = deployment.server("--grace", "0.5")
    clients = [deployment.client(id) for id in range(3)]
    deployment.reach(2, server)
    clients[2].kill()
    server.until("without client 2 (not connected)", 3)
    clients[2] = deployment.client(2)
    server.until("means are over other clients than in round", 2)
    deployment.reach(deployment.rounds() + 1, server)  # so that the line of the round of which that was said is there
    server.signal(signal.SIGTERM)
    server.wait()
    found = RunFolder(deployment.run).rows()
    lacking = [one["round"] for one in found if one["untested"]]
    assert len(lacking) >= 3
    assert all((one["tested"], one["tested_of"]) == (3 - len(one["untested"]), 3) for one in found)
    said = [line.split(maxsplit=2)[-1] for line in server.said.splitlines() if line]  # behind day and time
    table = {int(words[0]): line for line in said if (words := line.split()) and words[0].isdigit()}
    assert {round for round, line in table.items() if "!" in line} == {*lacking, max(lacking) + 1}
    assert "gap: over other clients" in (deployment.run / "accuracy.svg").read_text()
