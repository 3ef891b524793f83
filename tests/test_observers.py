"""Observers of a run: what they write, in what order, and before the checkpoint that depends on it."""

from dataclasses import replace
from pathlib import Path

import pytest

import world
from fedshare.errors import UserError
from fedshare.experiments import beginnings
from fedshare.experiments.config import build, compose
from fedshare.experiments.running.execute import simulation
from fedshare.experiments.running.rounds import rounds
from fedshare.ledger.transcript import kept
from fedshare.machine import files
from fedshare.rounds import Schedule, run_server
from fedshare.runs import RunFolder
from fedshare.runs.observers import LedgerWriter, writers
from fedshare.simulation import Simulation

SMALL = ["model=logistic", "partition.clients=3", "rounds=2", "client.epochs=1", "workers=0", "checkpoint_every=1"]


def test_the_ledgers_observer_writes_the_ledger_of_the_servers_memory(tmp_path: Path) -> None:
    made = world.build("onebyte")
    state, folder = world.begin(made), RunFolder(tmp_path)
    observers = writers(folder, state)
    assert [type(observer).__name__ for observer in observers] == ["LineWriter", "LedgerWriter"]
    for done in run_server(made.strategy, Simulation(lambda: made), state, Schedule(rounds=2, seed=0)):
        for observer in observers:
            observer.saw(done)
        found = kept(done.state)
        assert found is not None
        assert folder.ledger.read().head == found[1].head
        assert len(folder.links()) == len(folder.ledger.read().places) == done.number
    before = folder.ledger.path.read_bytes()
    LedgerWriter(folder.ledger).saw(replace(done, number=3))
    assert folder.ledger.path.read_bytes() == before, "a round without a usable upload has no commit"
    assert LedgerWriter(folder.ledger).begin(done.state), "a run that goes on where its ledger ends"
    assert folder.ledger.path.read_bytes() == before
    folder.ledger.rewind(1)
    with pytest.raises(UserError, match="ledger: does not lead to the checkpoint's round 2"):
        writers(folder, done.state)


def test_a_run_without_a_ledger_has_no_observer_for_one(tmp_path: Path) -> None:
    state = world.begin(world.build("fedavg"))
    assert [type(observer).__name__ for observer in writers(RunFolder(tmp_path), state)] == ["LineWriter"]
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_is_written_after_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each round, in this order, and each on disk before the next is begun."""
    order, sync = list[str](), files.os.fsync

    def synced(file: int) -> None:
        sync(file)
        path = Path(f"/proc/self/fd/{file}").readlink()
        if path.is_file():
            order.append(path.name.lstrip(".").split(".")[0])

    config = compose.resolved(["strategy=onebyte", *SMALL, f"folder={tmp_path / 'run'}"])
    folder, made = RunFolder(tmp_path / "run"), build.simulated(config)
    with simulation(config, folder, made) as network:
        beginnings.create(folder, config, made)
        monkeypatch.setattr(files.os, "fsync", synced)
        rounds(config, folder, network, made, None, None)
    order = [name for name in order if name not in ("partition", "accuracy")]
    one = ["seals", "metrics", "digests", "ledger"]
    assert order[0] == "ledger", "created before the first round"
    assert order[1:11] == [*one, "round-000001", "round-000001", *one]
    assert order[11:13] == ["round-000002"] * 2
