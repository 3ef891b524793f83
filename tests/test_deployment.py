"""Server and clients as processes of their own, over mutual TLS: the same bits as a simulation, whatever happens."""

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import world
from deployed import Command, Deployment, assert_equal, certificates, eventually, free_port, run, simulated
from fedshare.runs import RunFolder
from world import PATIENCE

pytestmark = pytest.mark.process

SMALL = ["data=digits", "model=logistic", "partition.clients=3"]
LONG = [*SMALL, "strategy=local", "rounds=10", "checkpoint_every=3", "client.batch_size=2", "client.epochs=1"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[str]:
    """The address of a server for which a host with three clients waits, time and again."""
    folder, address = tmp_path_factory.mktemp("host"), f"127.0.0.1:{free_port()}"
    arguments = ("client", address, "--keys", str(keys), "--id", "0,1,2", "--gpu", "none", "--stay")
    with Command(folder, *arguments, "--patience", "3600") as clients:
        yield address
        clients.signal(signal.SIGTERM)
        ended = clients.wait()
        killed = "did not end in time: killed" in clients.said  # a busy machine took longer than the host's grace
        assert ended in (0, 130) or killed, clients.said


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Simulations by the name of their strategy, each made once."""
    base = tmp_path_factory.mktemp("simulated")
    return cache(lambda name: simulated(base / name, *of(name)))


def of(name: str) -> list[str]:
    return [*SMALL, f"strategy={name}", "client.epochs=1", "rounds=3"]


@pytest.mark.parametrize("name", world.shapes())
def test_over_mutual_tls_every_kind_of_strategy_equals_its_simulation(
    name: str, host: str, keys: Path, tmp_path: Path, small: Callable[[str], Path]
) -> None:
    run(
        "server",
        *of(name),
        f"folder={tmp_path / 'deployed'}",
        "--listen",
        host,
        "--keys",
        str(keys),
        "--wait",
        str(PATIENCE),
    )
    assert_equal(tmp_path / "deployed", small(name))


@pytest.mark.parametrize("name", world.halves())
def test_in_process_every_kind_of_client_equals_its_simulation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Callable[[str], Path]
) -> None:
    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "state"))
    given = f'overrides="{" ".join(of(name))}" folder="{tmp_path / "deployed"}"'
    run("flower-run", str(world.ROOT), "--nodes", "3", "--run-config", given)
    assert_equal(tmp_path / "deployed", small(name))


@pytest.fixture
def deployment(tmp_path: Path, keys: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path, keys, *LONG) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("undisturbed") / "run", *LONG)


def test_killed_clients_and_a_killed_server_cost_no_bit(deployment: Deployment, undisturbed: Path) -> None:
    server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
    deployment.reach(1, server)
    clients[1].kill()  # with a memory on its disk and a round under way
    clients[1] = deployment.client(1)
    deployment.reach(4, server)
    server.kill()  # after the checkpoint of round 3: clients are ahead of it
    rounds = deployment.rounds()
    server = deployment.server()
    assert server.wait() == 0, server.said
    assert [client.wait() for client in clients] == [0, 0, 0], clients[0].said
    assert rounds >= 4
    assert "connected to" in clients[0].said, "it came back by itself"
    assert_equal(deployment.run, undisturbed)


def test_a_clients_death_and_return_are_in_the_servers_log_with_the_time(deployment: Deployment) -> None:
    server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
    deployment.reach(1, server)
    clients[1].kill()
    server.until("client 1 is gone: the connection broke off; absent if it is not back in")  # long before that
    deployment.client(1)
    server.until("client 1 is back")
    server.signal(signal.SIGTERM)
    server.wait()
    assert " is gone: " not in server.said.partition("! stopped")[2], "who is sent away at the end"
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    said = server.said.splitlines()
    for line in ("listening on", "client  host", "client 1 is gone", "client 1 is back", "round ", "! stopped"):
        assert any(re.match(f"{time} +{line}", one) for one in said), line
    assert re.search(f"^{time} connected to ", clients[0].said, re.MULTILINE)


def test_a_stopped_client_costs_its_rounds_their_deadline_and_no_more(keys: Path, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, keys, *LONG, "timeout=20")
    patient = ["--heartbeat", "2"]  # the others are not taken for dead on a busy machine
    server = deployment.server("--grace", "2", *patient)
    clients = [deployment.client(id, *patient) for id in range(3)]
    with server, clients[0], clients[1], clients[2]:
        deployment.reach(1, server)
        clients[2].signal(signal.SIGSTOP)
        server.until("client 2 dropped")
        clients[2].signal(signal.SIGCONT)
        assert server.wait() == 0, server.said
    rows = RunFolder(deployment.run).rows()
    assert [row["round"] for row in rows] == list(range(1, 11))
    reasons = [row["dropped"]["2"] for row in rows if row["dropped"]]
    assert reasons, server.said
    assert all(reason.startswith(("no answer in 20 s", "gone since", "not connected")) for reason in reasons)
    assert all(set(row["dropped"]) <= {"2"} for row in rows)


def test_a_stopped_server_costs_no_bit(deployment: Deployment, undisturbed: Path) -> None:
    server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
    deployment.reach(2, server)
    server.signal(signal.SIGSTOP)  # with a round under way
    clients[0].until("waiting for")  # two heartbeats of silence
    server.signal(signal.SIGCONT)
    assert server.wait() == 0, server.said
    assert [client.wait() for client in clients] == [0, 0, 0], clients[0].said
    assert_equal(deployment.run, undisturbed)


def test_a_server_that_is_told_to_stop_goes_on_later(deployment: Deployment, undisturbed: Path) -> None:
    server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
    deployment.reach(3, server)
    server.signal(signal.SIGTERM)
    assert server.wait() == 130, server.said
    assert "stopped; the same command with --resume" in server.said
    server = deployment.server()
    assert server.wait() == 0, server.said
    assert [client.wait() for client in clients] == [0, 0, 0], clients[0].said
    assert_equal(deployment.run, undisturbed)


def test_a_memory_that_is_lost_is_named_and_the_round_goes_on(deployment: Deployment) -> None:
    server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
    deployment.reach(1, server)
    clients[2].kill()
    for folder in (deployment.folder / "state").glob("*/client-2"):
        shutil.rmtree(folder)
    clients[2] = deployment.client(2)
    server.until("client 2 dropped")
    server.signal(signal.SIGTERM)
    server.wait()
    assert "the memory of round" in server.said, server.said
    assert "client 0 dropped" not in server.said


def test_clients_that_always_raise_halt_the_run(keys: Path, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, keys, *SMALL, "strategy=local", "rounds=3")
    (tmp_path / "no-folder").write_text("")
    broken = ["--state", str(tmp_path / "no-folder" / "state")]
    server = deployment.server()
    with server, deployment.client(0) as good, deployment.client(1, *broken), deployment.client(2, *broken):
        assert server.wait() == 3, server.said
        assert "round 1: 2 of 3 uploads cannot be used: client 1: raised NotADirectoryError" in server.said
        assert good.wait() == 3, good.said
        assert "the run halted: round 1: 2 of 3 uploads" in good.said


def test_who_comes_late_takes_part(keys: Path, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, keys, *LONG, "rounds=100000")
    server = deployment.server("--clients", "2")
    with server, deployment.client(0), deployment.client(1):
        deployment.reach(1, server)
        with deployment.client(2):
            eventually(lambda: 2 in (RunFolder(deployment.run).rows() or [{"clients": []}])[-1]["clients"], "client 2")
            server.signal(signal.SIGTERM)
            server.wait()
    assert RunFolder(deployment.run).rows()[0]["clients"] == [0, 1]


def test_another_config_is_refused_with_both_digests(keys: Path, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, keys, *SMALL, "rounds=3")
    with deployment.server() as server:
        server.until("listening on")
        client = deployment.client(0, *SMALL, "model=mlp")
        assert client.wait() == 2, client.said
        assert "client 0 was refused: its config is " in client.said
        assert ", the server's " in client.said
