"""Clients with data of their own, each on its host: the server has none, and the bits are those of a simulation."""

import csv
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from deployed import Deployment, assert_equal, certificates, run, simulated
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.experiments.config import build, compose
from fedshare.experiments.hosts import agreement
from fedshare.runs import RunFolder
from fedshare.simulation import Declared
from optional import extra

extra("pandas")

SITES = ["partition=own", "data.clients=3", "rounds=3", "workers=0"]
TUMOURS = [*SITES, "data=table", "data.load.target=y", "data.shape=[30]", "data.classes=2", "model=mlp"]
DIABETES = [*SITES, "data=table", "data.load.target=y", "data.shape=[10]", "data.classes=1", "model=mlp"]


def write(path: Path, x: Any, y: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{column}" for column in range(x.shape[1])), "y"])
        writer.writerows([*row, label] for row, label in zip(x.tolist(), y.tolist(), strict=True))
    return path


def sites(folder: Path, load: Callable[..., Any] = load_breast_cancer, counts: tuple[int, ...] = (60, 90, 120)) -> Path:
    x, y = load(return_X_y=True)
    for site, count in enumerate(counts):
        at = sum(counts[:site])
        write(folder / f"site-{site}.csv", x[at : at + count], y[at : at + count])
    return folder


def diabetes(return_X_y: bool) -> tuple[Any, Any]:
    x, y = load_diabetes(return_X_y=return_X_y)
    return x, y / 100


def listed(folder: Path, kind: str = "site-{}.csv") -> str:
    return f"partition.sources=[{','.join(str(folder / kind.format(site)) for site in range(3))}]"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def deployment(tmp_path: Path, keys: Path) -> Iterator[Callable[..., Deployment]]:
    with ExitStack() as stack:
        yield lambda *overrides: stack.enter_context(Deployment(tmp_path, keys, *overrides))


def played(deployment: Deployment, data: str) -> None:
    """A server without data, and three clients with theirs."""
    server, clients = deployment.server(), [deployment.client(id, "--data", data) for id in range(3)]
    assert server.wait() == 0, server.said
    assert [client.wait() for client in clients] == [0, 0, 0], clients[0].said


FEDERATIONS = {
    "fedavg": (load_breast_cancer, [*TUMOURS, "strategy=fedavg"]),
    "fedcac": (load_breast_cancer, [*TUMOURS, "strategy=fedcac"]),
    "regression": (diabetes, [*DIABETES, "task=regression", "strategy=ditto"]),
    "a validation part": (load_breast_cancer, [*TUMOURS, "strategy=rffl", "validation=0.2", "best=accuracy"]),
}


@pytest.mark.process
@pytest.mark.parametrize("name", FEDERATIONS)
def test_tables_of_their_own_over_mutual_tls_equal_the_same_in_a_simulation(
    name: str, deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    load, overrides = FEDERATIONS[name]
    folder = sites(tmp_path, load)
    simulated(tmp_path / "simulated", *overrides, listed(folder))
    made = deployment(*overrides)
    played(made, str(folder / "site-{id}.csv"))
    assert_equal(made.run, tmp_path / "simulated")
    assert json.loads((made.run / "declared.json").read_text()).keys() == {"0", "1", "2"}


@pytest.mark.process
def test_a_yaml_file_may_name_what_loads_a_hosts_data(deployment: Callable[..., Deployment], tmp_path: Path) -> None:
    folder = sites(tmp_path)
    for site in range(3):
        (folder / f"site-{site}.yaml").write_text(
            "load:\n  _target_: fedshare.data.tables.table\n"
            f"  path: {folder}/site-{{id}}.csv\n  target: y\n  test_share: 0.25\n  classes: 2\n"
        )
    overrides = [*SITES, "data=own", "data.shape=[30]", "data.classes=2", "model=mlp"]
    loads = ",".join(
        f"{{_target_: fedshare.data.tables.table, path: {folder}/site-{site}.csv, target: y, "
        "test_share: 0.25, classes: 2}"
        for site in range(3)
    )
    simulated(tmp_path / "simulated", *overrides, f"partition.sources=[{loads}]")
    made = deployment(*overrides)
    played(made, str(folder / "site-{id}.yaml"))
    assert_equal(made.run, tmp_path / "simulated")


@pytest.mark.process
def test_who_comes_back_with_other_data_is_refused_and_with_the_same_costs_no_bit(
    deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    overrides = [*TUMOURS, "rounds=12", "client.batch_size=2", "client.epochs=4", "checkpoint_every=3"]
    folder = sites(tmp_path)
    simulated(tmp_path / "simulated", *overrides, listed(folder))
    made = deployment(*overrides)
    data = ("--data", str(folder / "site-{id}.csv"))
    server = made.server()
    clients = [made.client(id, *data) for id in range(3)]
    made.reach(4, server)
    server.kill()
    clients[1].kill()
    rows = (folder / "site-1.csv").read_text()
    (folder / "site-1.csv").write_text("\n".join(rows.splitlines()[:-10]) + "\n")
    server = made.server()
    with made.client(1, *data):
        server.until("it joined this run with 72 training examples, and has 64 now")
    (folder / "site-1.csv").write_text(rows)
    clients[1] = made.client(1, *data)
    assert server.wait() == 0, server.said
    assert [client.wait() for client in clients] == [0, 0, 0], clients[1].said
    assert_equal(made.run, tmp_path / "simulated")


BROKEN = {
    "no such column": "a,b\n1,2\n",
    "a word for a number": "x0,y\n1,0\ntwo,1\n3,0\n4,1\n5,1\n",
    "no rows": ",".join(f"x{column}" for column in range(30)) + ",y\n",
    "another width": "x0,x1,y\n" + "1,2,0\n2,1,1\n" * 5,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_hosts_broken_data_are_named(what: str, tmp_path: Path) -> None:
    (sites(tmp_path) / "site-2.csv").write_text(BROKEN[what])
    population = build.population_of(compose.resolved(TUMOURS), str(tmp_path / "site-{id}.csv"))
    with pytest.raises(UserError) as error:
        population.shares[2].size  # noqa: B018
    assert str(error.value).startswith(f"--data {tmp_path / 'site-2.csv'}: ")
    assert "\n" not in str(error.value)
    assert population.shares[1].size == 72


@pytest.mark.process
def test_a_host_whose_data_are_mended_joins(deployment: Callable[..., Deployment], tmp_path: Path) -> None:
    folder = sites(tmp_path)
    good = (folder / "site-2.csv").read_text()
    (folder / "site-2.csv").write_text(BROKEN["another width"])
    made = deployment(*TUMOURS)
    server = made.server()
    clients = [made.client(id, "--data", str(folder / "site-{id}.csv")) for id in range(3)]
    server.until("client 2 does not take part")
    clients[2].until("site-2.csv")
    assert "Traceback" not in clients[2].said
    (folder / "site-2.csv").write_text(good)
    assert server.wait() == 0, server.said
    assert [client.wait() for client in clients] == [0, 0, 0], clients[2].said
    assert [row["clients"] for row in RunFolder(made.run).rows()] == [[0, 1, 2]] * 3


REFUSED = {
    "no sources": ([*TUMOURS], "a simulation needs partition.sources"),
    "too few sources": ([*TUMOURS, "partition.sources=[a.csv]"], "sources: 1, one a client, and clients=3"),
    "no such file": ([*TUMOURS, "partition.sources=[a.csv,b.csv,c.csv]"], "partition.sources[0]: "),
    "no shape": ([*TUMOURS, "data.shape=null", "partition.sources=[a.csv,b.csv,c.csv]"], "data.shape=null"),
    "no classes": ([*TUMOURS, "data.classes=null", "partition.sources=[a.csv,b.csv,c.csv]"], "data.classes=null"),
    "a common count": ([*TUMOURS, "train_examples=9", "partition.sources=[a.csv,b.csv,c.csv]"], "train_examples=9"),
    "nothing loads": (
        [*SITES, "data=own", "data.shape=[2]", "data.classes=2", "partition.sources=[a,b,c]"],
        "_target_",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_simulated_is_one_line_and_makes_no_folder(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, said = REFUSED[what]
    with pytest.raises(SystemExit) as ended:
        main(["run", *overrides, f"folder={tmp_path / 'run'}"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_a_sweep_looks_at_every_jobs_files_before_its_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sites(tmp_path)
    broken = f"partition.sources=[{folder}/site-0.csv,{folder}/site-1.csv,none.csv]"
    sweep = [listed(folder) + "," + broken.partition("=")[2], f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    with pytest.raises(SystemExit) as ended:
        main(["run", "-m", *TUMOURS, *sweep])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "partition.sources[2]: data.load: none.csv: no such file (job 1" in error
    assert error.count("\n") == 1, error
    assert not list((tmp_path / "sweep").glob("[0-9]"))


DATA_AMISS = {
    "none": (TUMOURS, False, "the data of this host are required: --data FILE"),
    "nobody asked": (["data=digits", "model=logistic", "partition.clients=3"], True, "is for partition=own"),
    "more than is allowed": (
        [*TUMOURS, "partition.max_examples=50"],
        True,
        "72 training examples; allowed are 1 to 50",
    ),
}


@pytest.mark.process
@pytest.mark.parametrize("what", DATA_AMISS)
def test_a_host_whose_data_do_not_fit_the_run_is_told_why(
    what: str, deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    overrides, has, said = DATA_AMISS[what]
    made, data = deployment(*overrides), str(sites(tmp_path) / "site-{id}.csv")
    with made.server() as server, made.client(1, *["--data", data] * has):
        server.until(said)
        assert "client 1 does not take part" in server.said
        server.signal(signal.SIGTERM)


@pytest.mark.process
def test_a_host_without_the_file_it_names_does_not_start(deployment: Callable[..., Deployment], tmp_path: Path) -> None:
    client = deployment(*TUMOURS).client(0, "--data", str(tmp_path / "site-{id}.csv"))
    assert client.wait() == 2, client.said
    assert f"--data {tmp_path / 'site-0.csv'}: no such file" in client.said


def test_how_many_examples_a_client_has_is_said_once(tmp_path: Path) -> None:
    declared = Declared(3, 100)
    declared.declare(0, 40)
    declared.keep(tmp_path / "run" / "declared.json")
    declared.declare(1, 100)
    declared.declare(0, 40)
    with pytest.raises(ValueError, match="joined this run with 40 training examples, and has 41 now"):
        declared.declare(0, 41)
    for count in (0, 101):
        with pytest.raises(ValueError, match="allowed are 1 to 100"):
            declared.declare(2, count)
    later = Declared(3, 100)
    later.recall(tmp_path / "run" / "declared.json")
    assert later.sizes == {0: 40, 1: 100}
    assert [each.size for each in later] == [40, 100, 0]


@pytest.mark.parametrize("text", ["", "[]", '{"0": "many"}', '{"a": 1}'])
def test_a_damaged_record_of_what_was_declared_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "declared.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        Declared(3, 100).recall(tmp_path / "declared.json")


def test_what_a_hosts_loader_splits_is_drawn_by_its_id_and_the_seed(tmp_path: Path) -> None:
    folder = sites(tmp_path, counts=(60, 60, 60))
    for site in (1, 2):
        (folder / f"site-{site}.csv").write_text((folder / "site-0.csv").read_text())

    def tests(*overrides: str) -> list[Any]:
        config = compose.resolved([*TUMOURS, "data.load.standardise=false", listed(folder), *overrides])
        shares = build.population_of(config).shares
        return [np.sort(np.asarray(shares[client].test.x)[:, 0]) for client in range(3)]

    once, again, other = tests(), tests(), tests("seed=7")
    assert all(np.array_equal(*pair) for pair in zip(once, again, strict=True))
    assert not np.array_equal(once[0], once[1])
    assert not np.array_equal(once[0], other[0])


def test_data_elsewhere_are_no_part_of_the_config_that_is_compared(tmp_path: Path) -> None:
    folder = sites(tmp_path)
    server = compose.resolved(TUMOURS)
    host = compose.resolved([*TUMOURS, listed(folder), "data.load.fill=0"])
    other = compose.resolved([*TUMOURS, "client.optimizer.lr=0.3"])
    assert agreement.digest(server) == agreement.digest(host) != agreement.digest(other)
    run("run", *TUMOURS, listed(folder), f"folder={tmp_path / 'run'}")
