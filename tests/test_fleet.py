"""Two apps on Flower's own SuperLink and SuperNodes over gRPC, TLS and node authentication: one that knows only Flower,
and ours, with every other kind of upload that a strategy has; test_deployment.py plays all, in the same messages.

All runs are started at once, for then the nodes do not sleep, and the apps' processes are forks: see `preloaded.py`.
"""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import world
from fedshare.experiments.cli import main
from fedshare.runs import RunFolder, verify
from fedshare.transport.flower.private import why_no_grpc_fleet
from fleet import Fleet, copy_of_fedshare

NODES = 3
PLAYED = world.shapes()[1::2]
SMALL = ["data=digits", "model=logistic", f"partition.clients={NODES}"]
TESTED = [*SMALL, "client.epochs=1", "rounds=2", "evaluate_every=2"]
UNTESTED = [*SMALL, "strategy=local", "client.epochs=1", "rounds=2", "evaluate_every=0"]
BROKEN = {"one-broken": [2], "all-broken": [0, 1, 2]}  # clients that cannot write their memory, by run
RUN_ID = "0123456789abcdef"
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(why_no_grpc_fleet()), reason=f"{why_no_grpc_fleet()}; see test_fleet_http.py"),
]


@dataclass(frozen=True)
class Outcome:
    status: str
    log: str
    folder: Path


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of this repository and of the app that knows only Flower: `flwr run` writes where the app is."""
    folder = tmp_path_factory.mktemp("apps")
    shutil.copytree(world.ROOT / "tests" / "quickstart", folder / "quickstart")
    copy_of_fedshare(folder / "fedshare")
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, apps: Path) -> Iterator[dict[str, Outcome]]:
    """Of all runs, by name."""
    runs, states = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("states")
    extras = {f"client-{client}": {"state-dir": str(states / str(client))} for client in range(NODES)}
    overrides = {name: [*TESTED, f"strategy={name}"] for name in PLAYED}
    overrides |= dict.fromkeys(BROKEN, UNTESTED) | {"misspelt": ["strategy=nonsense"]}
    for number, (name, clients) in enumerate(BROKEN.items()):
        id = RUN_ID.replace("0", str(number))
        (runs / name).mkdir()
        (runs / name / "run-id").write_text(id)
        for client in clients:  # a file where the client's memory of this run would be
            (states / str(client)).mkdir(exist_ok=True)
            (states / str(client) / id).touch()
    with Fleet(tmp_path_factory.mktemp("fleet"), NODES, extras, preload=True, durable=False) as fleet:
        given = {"min-nodes": NODES, "fraction-evaluate": 0.0, "lr": 0.2}
        started = {"quickstart": fleet.submit(apps / "quickstart", given)}
        for name, keys in overrides.items():
            config = {"overrides": " ".join(keys), "folder": str(runs / name)}
            started[name] = fleet.submit(apps / "fedshare", config)
            if name == PLAYED[0]:  # the first has installed the app before the next begins
                _until_exists(runs / name / "config.yaml", fleet, started[name])
        deadline = time.monotonic() + 4 * world.PATIENCE  # for all runs
        yield {
            name: Outcome(*fleet.end(run, deadline - time.monotonic()), runs / name) for name, run in started.items()
        }


def _until_exists(path: Path, fleet: Fleet, run: str) -> None:
    deadline = time.monotonic() + world.PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"there is no {path} after {world.PATIENCE:g} s"
        status = fleet.status(run)
        assert not status.startswith("finished"), f"the run has ended without {path}: {status}\n{fleet.log(run)}"
        time.sleep(0.1)


@pytest.mark.parametrize("name", PLAYED)
def test_strategies_equal_their_simulations(name: str, outcomes: dict[str, Outcome], tmp_path: Path) -> None:
    outcome = outcomes[name]
    assert outcome.status == "finished:completed", outcome.log
    with pytest.raises(SystemExit) as ended:
        main(["run", *TESTED, f"strategy={name}", f"folder={tmp_path}", "workers=0"])
    assert ended.value.code == 0
    deployed, simulated = RunFolder(outcome.folder), RunFolder(tmp_path)
    same, sentence = verify(deployed, simulated)
    assert same, sentence
    assert [row | {"seconds": 0} for row in deployed.rows()] == [row | {"seconds": 0} for row in simulated.rows()]


def test_a_client_that_always_fails_is_dropped_each_round_with_its_reason(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["one-broken"]
    assert outcome.status == "finished:completed", outcome.log
    rows = RunFolder(outcome.folder).rows()
    assert [row["clients"] for row in rows] == [[0, 1], [0, 1]]
    for row in rows:
        assert list(row["dropped"]) == ["2"]
        assert "Not a directory" in row["dropped"]["2"]
    assert outcome.log.count("client 2 dropped: ") == 2


def test_a_run_fails_where_all_clients_do(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["all-broken"]
    assert outcome.status == "finished:failed"
    assert "round 1: 3 of 3 uploads cannot be used: client 0: " in outcome.log
    assert "Not a directory" in outcome.log
    assert not RunFolder(outcome.folder).rows()


def test_bad_input_is_said_in_one_line(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["misspelt"]
    assert outcome.status == "finished:failed"
    assert re.search(r"UserError: .*nonsense.*fedavg", outcome.log), outcome.log
    assert not outcome.folder.exists()


def test_an_app_that_knows_only_flower(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["quickstart"]
    assert outcome.status == "finished:completed", outcome.log
    assert outcome.log.count("Received 3 results and 0 failures") == 3
    found = re.search(r"quickstart: after 3 rounds, accuracy (\d\.\d+), loss (\d\.\d+)", outcome.log)
    assert found, outcome.log
    assert float(found[1]) > 0.8


@pytest.mark.parametrize("app", ["quickstart", "fedshare"])
def test_flwr_run_leaves_the_pyproject_as_it_was(app: str, apps: Path, outcomes: dict[str, Outcome]) -> None:
    ours = world.ROOT if app == "fedshare" else world.ROOT / "tests" / app
    assert (apps / app / "pyproject.toml").read_bytes() == (ours / "pyproject.toml").read_bytes()
