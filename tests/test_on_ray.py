"""Workers on a Ray cluster of two nodes: the same bits as in this process, and what happens when some are lost."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_runs import fedshare
from test_simulation import fails_in_a_worker, links, run, troubled

import forked
import world
from fedshare.engine.batched import Batched
from fedshare.engine.single import Make, Single
from fedshare.errors import RunHalted, UserError
from fedshare.simulation import Simulation, on_ray
from fedshare.simulation.on_ray import Ray
from optional import extra

ray = extra("ray")
pytestmark = [pytest.mark.process, pytest.mark.long]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
SMALL = ["data=digits", "model=logistic", "partition.clients=4", "clients_per_round=4", "rounds=2", "evaluate_every=2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    # Not in pytest's folder, whose name is too long for sockets, nor where any program's `ray.init()` would find it.
    with tempfile.TemporaryDirectory(prefix="ray") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        made.add_node(**NODE)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def both(cluster: Any) -> Ray:
    found = Ray(cluster.address)
    assert found.places() == 2
    return found


@pytest.mark.parametrize("engine", [Single, Batched])
def test_two_nodes_give_the_bits_of_this_process(both: Ray, engine: Make) -> None:
    build = partial(world.build, "fedavg")
    expected = links(Simulation(build, engine=engine))
    with Simulation(build, 2, engine=engine, cluster=both) as network:
        assert links(network) == expected
        assert links(network) == expected
        assert isinstance(network._workers, on_ray.Actors)
        assert len({actor.node for actor in network._workers._actors}) == 2


def test_clients_with_models_and_memories_of_their_own_have_the_same_bits(both: Ray) -> None:
    build = partial(world.build, "fedcac")
    with Simulation(build, 2, cluster=both) as network:
        assert links(network) == links(Simulation(build))


def test_an_actor_that_dies_is_replaced_and_its_client_done_again(both: Ray, tmp_path: Path) -> None:
    with Simulation(partial(troubled, "die", str(tmp_path / "mark")), 2, cluster=both) as network:
        after_death = run(network)
        assert run(network) == after_death == run(Simulation(partial(world.build, "fedavg")))
    assert (tmp_path / "mark").exists()


TROUBLES = {
    "die": r"round 1: client 2: train: its worker died 2 times \([\d.]+: The actor is dead because its worker",
    "hang": "round 1: client 2: train: no answer from its worker in timeout=10 s",
    "raise": r"round 1: client 2: train: raised ValueError: no such luck \(test_simulation.py, line \d+\)$",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_client_in_trouble_halts_the_run(both: Ray, trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    timeout = 10.0 if trouble == "hang" else world.PATIENCE
    with Simulation(partial(troubled, trouble), 2, timeout, cluster=both) as network:
        with pytest.raises(RunHalted, match=TROUBLES[trouble]):
            run(network)
        with pytest.raises(RuntimeError, match="closed, or ended with an error"):
            run(network)
    assert bool(re.search(r"ValueError: no such luck\n", caplog.text)) == (trouble == "raise")


def test_a_worker_that_cannot_start_says_where_and_why(both: Ray) -> None:
    with (
        Simulation(partial(fails_in_a_worker, os.getpid()), 2, cluster=both) as network,
        pytest.raises(RunHalted, match=r"a worker on [\d.]+ could not start: OSError: no data here"),
    ):
        run(network)


def test_a_machine_with_another_model_is_refused(both: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = on_ray.traits
    monkeypatch.setattr(on_ray, "traits", lambda population: usual(population) | {"torch": "1.0"})
    with (
        Simulation(partial(world.build, "fedavg"), 2, cluster=both) as network,
        pytest.raises(RunHalted, match=r"[\d.]+ has another torch: \S+, not 1\.0"),
    ):
        run(network)


def test_a_run_on_a_cluster_equals_that_of_this_machine_and_is_resumed_there(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    on_cluster = ["cluster=ray", f"cluster.address={cluster.address}"]
    assert fedshare("run", *SMALL, "folder=here", "workers=0") == 0
    assert fedshare("run", *SMALL, *on_cluster, "folder=there", "rounds=1", "evaluate_every=0") == 0
    assert "cluster" not in capsys.readouterr().err
    assert fedshare("resume", "there", "--rounds", "2") == 0
    assert fedshare("verify", "here", "there") == 0
    assert "equal: 2 rounds" in capsys.readouterr().out


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    words = ["cluster=ray", "cluster.address=127.0.0.1:1", "cluster.deadline=3", "folder=run"]
    done = forked.run("-m", "fedshare", "run", *SMALL, *words, cwd=tmp_path, timeout=world.PATIENCE)
    said = "fedshare: cluster=ray, address=127.0.0.1:1: cannot be reached: [Errno 111] Connection refused\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpus": -1.0}, "gpus=-1: must be from 0 to 1, or a whole number"),
        ({"gpus": 1.5}, "gpus=1.5: must be from 0 to 1, or a whole number"),
        ({"deadline": 0.0}, "deadline=0: must be above 0 seconds"),
        ({"address": "ray://head:10001"}, "address=ray://head:10001: must be auto or HOST:PORT"),
        ({"address": "local"}, "address=local: must be auto or HOST:PORT"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Ray(**settings)


def test_gpus_that_are_not_there_leave_no_room(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"gpus=0.5: no room for a worker"):
        Ray(cluster.address, gpus=0.5).places()


def test_sigterm_ends_a_run_in_order(cluster: Any, tmp_path: Path) -> None:
    words = [*SMALL, "rounds=100000", "evaluate_every=0", "cluster=ray", f"cluster.address={cluster.address}"]
    rows = tmp_path / "run" / "metrics.jsonl"
    with (tmp_path / "said").open("w") as said:
        arguments = ["-m", "fedshare", "run", *words, f"folder={tmp_path / 'run'}"]
        process = subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, stdout=said, stderr=said)
        while process.poll() is None and not (rows.exists() and rows.stat().st_size):
            time.sleep(0.1)
        process.terminate()
        status = process.wait(world.PATIENCE)
    assert status == 130
    assert "SIGTERM received" not in (tmp_path / "said").read_text(), "Ray's handler, which aborts the process"


def test_the_run_goes_on_without_a_machine_that_is_lost(cluster: Any, both: Ray) -> None:
    """The last test, for it takes a machine away."""
    build = partial(world.build, "fedavg")
    expected = links(Simulation(build))
    with Simulation(build, 2, cluster=both) as network:
        assert links(network) == expected
        [lost] = cluster.worker_nodes
        raylet = lost.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGKILL)
        assert links(network) == expected
        assert isinstance(network._workers, on_ray.Actors)
        assert len(network._workers._actors) == 2
