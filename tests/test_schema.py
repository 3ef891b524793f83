"""What the schema says of each key: its range, who must agree on it, what depends on it; and the lists made of that."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import world
from fedshare.errors import UserError
from fedshare.experiments.config import schema
from fedshare.experiments.config.application import CONF
from fedshare.experiments.config.keys import ALWAYS, Choice, Effect, Range
from fedshare.experiments.config.schema import HARMLESS, IDLE, MAY_CHANGE, MEANT, SHARED, SINCE, Root, about
from fedshare.rounds import Round, Schedule, run_server
from fedshare.runs import RunFolder, verify
from fedshare.simulation import Simulation
from fedshare.transport.pace import Pace

DEPLOYMENT = (world.ROOT / "docs" / "deployment.md").read_text()


def test_the_docs_list_what_all_hosts_must_have_alike() -> None:
    listed = re.search(r"parts that must be the same everywhere \(([^)]*)\)", DEPLOYMENT)
    assert listed
    assert tuple(re.split(r",\s+", listed[1])) == SHARED


def test_the_docs_list_what_a_deployments_waiting_goes_by() -> None:
    """Those of the section on slow clients, all of which may be changed when a run goes on."""
    section = DEPLOYMENT.partition("\n## Slow clients\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    late = {one.name for one, said in about(Root) if said.effect in (Effect.WAITING, Effect.LATENESS)}
    assert set(listed) == late
    assert late <= set(MAY_CHANGE) & set(IDLE)
    assert late == {"timeout", *asdict(Pace())}


def test_the_keys_that_all_must_have_alike_decide_results_and_stay_as_they_were() -> None:
    for one, said in about(Root):
        if said.shared:
            assert said.effect is Effect.RESULTS, one.name
            assert not said.may_change, one.name
    assert not set(HARMLESS) & set(SHARED)
    assert {"rounds", "evaluate_every"} == set(HARMLESS) - set(IDLE)


def test_what_older_versions_did_is_a_value_of_the_key() -> None:
    for one, said in about(Root):
        if said.before is not ALWAYS:
            schema.check_ranges({one.name: said.before}, Root)
    assert SINCE.items() <= MEANT.items()
    assert set(SINCE) == {"on_weakened", "max_norm_ratio", "engine", "peers", "links"}, (
        "a key more here: cells of before are found as they are"
    )


def test_what_conf_says_is_in_range() -> None:
    for name, root in (("config", Root), ("pretrain", schema.Pretraining), ("matrix", schema.Matrix)):
        conf: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
        assert conf.keys() & {one.name for one, said in about(root) if said.allowed}
        schema.check_ranges(conf, root)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "said"),
    [
        (Range(1), [1, 7, math.inf], [0, -1, math.nan], "at least 1"),
        (Range(1, 86400), [1, 86400], [0.5, 86401], "from 1 to 86400"),
        (Range(0, 1, below=True), [0, 0.999], [-0.1, 1], "at least 0 and below 1"),
        (Range(0, 1, above=True), [0.001, 1], [0, 1.1], "above 0 and at most 1"),
        (Choice(("halt", "drop")), ["halt", "drop"], ["stop", None], "halt or drop"),
    ],
)
def test_what_is_allowed_is_said(allowed: Any, inside: list[Any], outside: list[Any], said: str) -> None:
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert str(allowed) == said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rounds", None, "rounds=null: must be at least 1"),
        ("on_client_error", None, "on_client_error=null: must be halt or drop"),
        ("validation", 1.0, "validation=1.0: must be at least 0 and below 1"),
        ("quorum", 0.0, "quorum=0.0: must be above 0 and at most 1"),
        ("timeout", 0.5, "timeout=0.5: must be from 1 to 86400"),
        ("clients_per_round", None, None),
        ("deadline_factor", None, None),
    ],
)
def test_null_is_for_keys_that_take_it(key: str, value: Any, said: str | None) -> None:
    if said is None:
        schema.check_ranges({key: value}, Root)
        return
    with pytest.raises(UserError) as error:
        schema.check_ranges({key: value}, Root)
    assert str(error.value) == said


def rounds(seed: int) -> Iterator[Round]:
    made = world.build("fedavg", seed)
    return run_server(made.strategy, Simulation(lambda: made), world.begin(made), Schedule(rounds=1, seed=seed))


def test_verify_names_the_first_key_that_may_be_why_runs_differ(tmp_path: Path) -> None:
    configs = {
        "a": "data:\n  load:\n    name: one\nworkers: 0\ntracking:\n  group: x\nseed: 0\n",
        "b": "data:\n  load:\n    name: one\nworkers: 2\ntracking:\n  group: y\nseed: 1\n",
        "c": "data:\n  load:\n    name: two\nworkers: 2\ntracking:\n  group: y\nseed: 1\n",
    }
    runs = {}
    for seed, (name, text) in enumerate(configs.items()):
        runs[name] = RunFolder(tmp_path / name)
        runs[name].create(text, {}, sealed=False)
        for done in rounds(seed):
            runs[name].append(done.row, done.link)

    def why(a: str, b: str) -> str:
        same, sentence = verify(runs[a], runs[b], harmless=HARMLESS)
        assert not same
        return sentence.partition("; so do their configs: ")[2]

    assert why("a", "b") == "seed: 0 | seed: 1"
    assert why("a", "c") == "name: one | name: two", "of the data: not the run's own"
    assert verify(runs["a"], runs["b"])[1].endswith("workers: 0 | workers: 2"), "where nothing is said to be harmless"
