"""Peers as processes against the simulation of them: joining late, leaving, killed and back, and equal to the bit.

    python benchmarks/peers.py [OVERRIDE ...] [--peers 8] [--late 2] [--leave 1] [--kill 1] [--insecure] [--folder DIR]

Starts a `fedshare peer` for each peer on this machine, with certificates of its own and mutual TLS. The last `--late`
peers start when a quarter of the rounds is done, `--leave` peers are asked to leave after half, `--kill` peers are
killed after 60 %, and started again. Then the same config is simulated with the joins and leaves that the peers have
recorded, and the memory of each peer after each round must have the simulation's bits. Exit status 1 if it has not.
"""

import argparse
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fedshare.experiments.config import build, compose
from fedshare.identity import keys
from fedshare.links.attendance import Attendance, Event
from fedshare.rounds import run_server
from fedshare.runs import RunFolder
from fedshare.simulation import Simulation
from fedshare.state import State, digests
from fedshare.tensors import digest

CONFIG = ["strategy=onebyte", "data=digits", "model=logistic", "rounds=500"]
GRAPH = ["peers=random_regular", "peers.degree=4"]  # unless the overrides name one
USUAL = ["clients_per_round=null", "evaluate_every=0", "engine=plain"]
PATIENCE = 600.0  # seconds without a new round


class Peer:
    """One `fedshare peer` process and its folder."""

    def __init__(self, number: int, base: Path, arguments: list[str]) -> None:
        self.number, self.folder, self.log = number, base / f"peer-{number}", base / f"peer-{number}.log"
        self._command = [sys.executable, "-m", "fedshare", "peer", *arguments, "--id", str(number)]
        self._command += [f"folder={self.folder}"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def done(self) -> int:
        """Return the number of its last round."""
        try:
            return int(json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["round"])
        except (OSError, ValueError, IndexError):
            return 0

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def until(true: Callable[[], bool], what: str, peers: list[Peer]) -> None:
    """Wait for `true`; give up when no peer has done a round for `PATIENCE` seconds."""
    last, since = -1, time.monotonic()
    while not true():
        if (now := sum(peer.done() for peer in peers)) != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise SystemExit(f"waited {PATIENCE:g} s for {what}")
        if failed := [peer for peer in peers if peer.process and peer.process.poll() not in (None, 0, -signal.SIGKILL)]:
            raise SystemExit(f"peer {failed[0].number} has failed:\n{failed[0].log.read_text()[-3000:]}")
        time.sleep(0.1)


def lived(base: Path, overrides: list[str], rounds: int, options: argparse.Namespace) -> list[Peer]:
    """Run all peers to their ends."""
    arguments = [*overrides, "addresses=[" + ",".join(f"127.0.0.1:{p}" for p in free_ports(options.peers)) + "]"]
    arguments += ["--wait", str(options.wait), "--grace", "120"]
    if not options.insecure:
        keys.make(base / "keys", ["localhost"], options.peers, 30, peers=True)
        arguments += ["--keys", str(base / "keys")]
    peers = [Peer(number, base, arguments) for number in range(options.peers)]
    first, late = peers[: options.peers - options.late], peers[options.peers - options.late :]
    try:
        for peer in first:
            peer.start()
        until(lambda: first[0].done() >= rounds // 4, "a quarter of the rounds", first)
        for peer in late:
            peer.start()
        until(lambda: first[0].done() >= rounds // 2, "half of the rounds", peers)
        for peer in first[1 : 1 + options.leave]:
            assert peer.process
            peer.process.send_signal(signal.SIGTERM)
        until(lambda: first[0].done() >= rounds * 6 // 10, "60 % of the rounds", peers)
        for peer in first[1 + options.leave : 1 + options.leave + options.kill]:
            peer.end()
            print(f"peer {peer.number} was killed in round {peer.done() + 1}")
            peer.start()
        until(lambda: all(p.process and p.process.poll() is not None for p in peers), "the end", peers)
    finally:
        for peer in peers:
            peer.end()
    return peers


def happened(peers: list[Peer], rounds: int) -> list[Event]:
    """Return what peers have recorded of themselves, but for leaving after the last round."""
    found = list[Event]()
    for peer in peers:
        lines = (peer.folder / "events.jsonl").read_text().splitlines()
        own = [event for event in map(json.loads, lines) if event["client"] == peer.number]
        found += [Event(one["round"], one["client"], one["event"]) for one in own if one["round"] <= rounds]
    return sorted(found, key=lambda event: (event.round, event.client))


def leaves_of(state: State, peer: int) -> dict[str, str]:
    """Return the digests of a simulated peer's memory, as the peer itself would have them."""
    if "flood" in state:
        return {"flood/sums": digest(state["flood"]["sums"][peer]), "flood/head": digest(state["flood"]["heads"][peer])}
    return digests(state["peers"][peer])


def differences(peers: list[Peer], overrides: list[str], events: list[Event]) -> list[str]:
    """Simulate the run with `events`, and return where a peer's memory was another."""
    config = compose.resolved(overrides)
    population = build.population_of(config)
    schedule = build.schedule(config, population)
    state = population.strategy.init(population.scratch.initial, population.clients)
    by_peer = [{link.round: link.server for link in RunFolder(peer.folder).links()} for peer in peers]
    away = {event.client for event in events if event.what == "join"}
    wrong, compared = list[str](), 0
    with Simulation(lambda: population, population=population) as network:
        here = Attendance(network, lambda round, _: [one for one in events if one.round == round], sorted(away))
        for done in run_server(population.strategy, here, state, schedule):
            for event in (one for one in events if one.round == done.number):
                (away.add if event.what in ("leave", "crash") else away.discard)(event.client)
            for peer, links in enumerate(by_peer):
                if peer in away:
                    continue
                expected, found = leaves_of(done.state, peer), links.get(done.number, {})
                compared += 1
                bad = [name for name, value in expected.items() if found.get(name) != value]
                wrong += [f"round {done.number}: peer {peer}: {bad[0]}"] if bad else []
    print(f"{compared} memories of peers after a round compared with the simulation's: {len(wrong)} differ")
    return wrong


def seconds(peers: list[Peer]) -> float:
    """Return the median time of a round, as peers have recorded it."""
    rows = [json.loads(line) for peer in peers for line in (peer.folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(sum(row["seconds"].values()) for row in rows if row["clients"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    for name, count in (("peers", 8), ("late", 2), ("leave", 1), ("kill", 1)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--wait", type=float, default=15.0, help="seconds to wait for peers that are late")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--folder")
    options = parser.parse_intermixed_args(arguments)
    graph = [] if any(one.startswith("peers=") for one in options.overrides) else GRAPH
    overrides = [*CONFIG, *graph, f"partition.clients={options.peers}", *USUAL, *options.overrides]
    rounds = int(compose.resolved(overrides).rounds)
    with ExitStack() as stack:
        base = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        base.mkdir(exist_ok=True)
        peers = lived(base, overrides, rounds, options)
        events = happened(peers, rounds)
        print("events:", *(f"round {one.round}: peer {one.client} {one.what}s" for one in events), sep="\n  ")
        print(f"median {seconds(peers) * 1000:.0f} ms a round, {options.peers} processes")
        models: dict[int, str] = {
            peer.number: digest_of(peer.folder / "model.safetensors") for peer in peers if peer.done() == rounds
        }
        print(f"{len(models)} peers at round {rounds}, {len(set(models.values()))} different models")
        wrong = differences(peers, overrides, events)
        print(*wrong[:10], sep="\n")
    return int(bool(wrong))


def digest_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"


if __name__ == "__main__":
    sys.exit(main())
