"""Peers in processes of their own, by a relay: what the log says happened, a simulation repeats to the bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deployed import Command, eventually, free_port, lines, simulated
from fedshare.identity import keys
from fedshare.relay.commits import Commit
from fedshare.relay.database import SQLite
from fedshare.relay.entries import Kind
from fedshare.relay.store import Store

ROUNDS = int(os.environ.get("FEDSHARE_ROUNDS", "12"))
CONFIG = ["strategy=onebyte", "model=logistic", "data=digits", "partition.clients=8", "evaluate_every=0"]
pytestmark = pytest.mark.process


class Fleet:
    """A relay and its peers, over mutual TLS."""

    def __init__(self, folder: Path, stack: ExitStack, config: list[str], peers: int, *flags: str) -> None:
        self.folder, self.config, self._stack, self._flags = folder, config, stack, flags
        keys.make(folder / "keys", ["localhost"], peers, 30, peers=True)
        self.address = f"localhost:{free_port()}"
        self.log = folder / "log"
        self.relay = self.start_relay()

    def start_relay(self, **environ: str) -> Command:
        self.relay = self._start("relay", "--log", str(self.log), "--listen", self.address, *self._flags, **environ)
        return self.relay

    def peer(self, id: int, *flags: str, **environ: str) -> Command:
        place = f"folder={self.folder / f'peer-{id}'}"
        return self._start("peer", *self.config, place, "--id", str(id), "--relay", self.address, *flags, **environ)

    def _start(self, *arguments: str, **environ: str) -> Command:
        command = Command(self.folder, *arguments, "--keys", str(self.folder / "keys"), **environ)
        return self._stack.enter_context(command)

    def rounds(self, id: int) -> int:
        return lines(self.folder / f"peer-{id}" / "metrics.jsonl")

    def reach(self, id: int, round: int, command: Command) -> None:
        eventually(
            lambda: self.rounds(id) >= round or command.process.poll() is not None, f"round {round}:\n{command.said}"
        )
        assert self.rounds(id) >= round, command.said

    def commits(self) -> list[Commit]:
        store = Store(SQLite(self.log / "log.db", write=False), write=False)
        try:
            return [*store.commits(0)]
        finally:
            store.close()

    def ask(self, *flags: str) -> str:
        command = [sys.executable, "-m", "fedshare", "relay", "--log", str(self.log), *flags]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.long
def test_eight_peers_join_late_leave_and_crash_as_in_the_simulation(tmp_path: Path, stack: ExitStack) -> None:
    config = [*CONFIG, f"rounds={ROUNDS}"]
    fleet = Fleet(tmp_path, stack, config, 8, "--peers", "6", "--round-seconds", "3600")
    fleet.relay.until("listening on")
    peers = {id: fleet.peer(id) for id in range(6)}
    fleet.reach(0, 2, peers[0])
    peers[0].signal(signal.SIGSTOP)  # no round ends while the late ones start
    held = fleet.rounds(1)
    peers |= {id: fleet.peer(id) for id in (6, 7)}
    pending = Store(SQLite(fleet.log / "log.db", write=False), write=False)
    eventually(lambda: sum(one.kind == Kind.ADMIT for one in pending.pending()) == 2, "two admissions")
    pending.close()
    peers[1].signal(signal.SIGTERM)  # leaves when its round is over
    peers[1].until("leaves when its round is over")
    peers[0].signal(signal.SIGCONT)
    fleet.reach(6, held + 2, peers[6])
    peers[3].kill()
    peers[3] = fleet.peer(3)
    for id, peer in peers.items():
        assert peer.wait() == 0, f"peer {id}:\n{peer.said}"
    fleet.relay.signal(signal.SIGTERM)
    assert fleet.relay.wait() == 130
    assert "sound: rounds up to" in fleet.ask("--check")

    events = tmp_path / "events.jsonl"
    events.write_text(
        "".join(f"{line}\n" for line in fleet.ask("--events", "8").splitlines() if json.loads(line)["round"] <= ROUNDS)
    )
    said = {(one["client"], one["event"]) for one in map(json.loads, events.read_text().splitlines())}
    assert {(1, "leave"), (6, "join"), (7, "join")} <= said
    simulation = simulated(tmp_path / "simulation", *config, "engine=plain", "links=file", f"links.path={events}")
    model = (simulation / "model.safetensors").read_bytes()
    for id in set(range(8)) - {1}:
        assert (tmp_path / f"peer-{id}" / "model.safetensors").read_bytes() == model, f"peer {id}"


@pytest.mark.long
def test_a_late_peer_begins_at_an_attested_snapshot(tmp_path: Path, stack: ExitStack) -> None:
    config = ["strategy=fedavg", *CONFIG[1:3], "partition.clients=3", "evaluate_every=0", "rounds=8"]
    fleet = Fleet(tmp_path, stack, config, 3, "--peers", "2", "--round-seconds", "3600")
    fleet.relay.until("listening on")
    peers = {id: fleet.peer(id, "--attest-every", "2") for id in (0, 1)}
    fleet.reach(0, 5, peers[0])
    peers[0].signal(signal.SIGSTOP)
    peers[2] = fleet.peer(2, "--attest-every", "2")
    peers[2].until("begins at the snapshot of round")
    peers[0].signal(signal.SIGCONT)
    for id, peer in peers.items():
        assert peer.wait() == 0, f"peer {id}:\n{peer.said}"
    models = {(tmp_path / f"peer-{id}" / "model.safetensors").read_bytes() for id in peers}
    assert len(models) == 1
