#!/usr/bin/env python
"""A long random run of peers among faults, and what must hold after each part of it.

    python benchmarks/peers_soak.py [--relay] [--minutes N] [--peers N] [--seed N] [--folder FOLDER]

Peers are `fedshare peer` processes of this machine, with TLS, that train one ledger (strategy=onebyte) over the graph
of `--graph`, or by a relay. Each connection goes through a proxy. In every part, faults that the seed draws befall the
processes and connections: kill -9, also at named points in the code, SIGSTOP, resets, black holes, flipped bits,
delays, slow links; shorter and longer than the others wait. Then all faults are ended, and the peers must finish their
rounds. At the end all must have the same model, the same entries, every entry that was on any disk at
any time, each once in their sums, and no proof that one of them signed two things in a round. Exit status 1 if not;
the logs are kept.

Processes are forked from one that has loaded the libraries, so that restarts take a second. They do not wait for
fsync: kill -9 loses nothing that was written.
"""

# ruff: noqa: E402, I001  # the harness is in the tests folder
import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything is loaded

import soak_checks
from deployed import free_port, lines
from fedshare.experiments.config import build, compose
from fedshare.experiments.signals import terminable
from fedshare.identity import keys
from fedshare.peers.recorded import Recorded
from forked import Process, python
from nemesis import GRACE, Nemesis
from proxy import Proxy

CONFIG = ["strategy=onebyte", "data=digits", "model=logistic", "client.batch_size=16", "clients_per_round=null"]
CONFIG += ["evaluate_every=0"]
MESH_POINTS: tuple[str, ...] = ("mesh.before-spool", "mesh.after-spool", "mesh.after-send", "mesh.mid-round")
PEER_POINTS: tuple[str, ...] = ("peer before spool", "peer after spool")
RELAY_POINTS: tuple[str, ...] = ("relay before insert", "relay after insert", "relay before fsync", "relay after fsync")
RELAY_POINTS += ("relay after commit row", "relay after commit")
DEADLINE = 180.0  # seconds in which some healed peer must finish a round
PAUSES = 0.3, 2.0  # seconds between faults


class Program:
    """A `fedshare` process that is started again and again; `port` is where the proxy in front of it leads."""

    def __init__(self, folder: Path, name: str, port: int, failpoints: tuple[str, ...], stack: ExitStack) -> None:
        self.name, self.folder, self.log = name, folder, folder / f"{name}.log"
        self.failpoints, self.run = failpoints, folder / f"run-{name}"
        self.proxy = stack.enter_context(Proxy(port, seed=len(name)))
        self.arguments: list[str] = []
        self.process: Process | None = None
        stack.callback(self.kill)

    def start(self, failpoint: str = "") -> None:
        environment = os.environ | {"FEDSHARE_FAILPOINT": failpoint, "PYTHONUNBUFFERED": "1"}
        with self.log.open("a") as log:
            words = ("-m", "fedshare", *self.arguments)
            self.process = python(*words, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def finished(self) -> bool:
        return self.process is not None and self.process.poll() == 0

    def failed(self) -> str | None:
        """Why it is over though nobody has killed it; None if it runs, was killed, or has finished."""
        status = self.process.poll() if self.process else None
        if status in (None, 0, -signal.SIGKILL):
            return None
        return f"{self.name} ended with status {status}:\n{self.log.read_text()[-2000:]}"

    def rounds(self) -> int:
        return lines(self.run / "metrics.jsonl")


class Part:
    """One run from its first round to its last."""

    def __init__(self, folder: Path, options: argparse.Namespace, seed: int, stack: ExitStack) -> None:
        self.draw, self.rounds, self.folder, self.stack = random.Random(seed), options.rounds, folder, stack
        self.relay: Program | None = None
        self.acknowledged: soak_checks.Ledger = {}
        self.followed = b""
        keys.make(folder / "keys", ["localhost"], options.peers, 1, peers=True)
        self.config = [*CONFIG, f"partition.clients={options.peers}", f"seed={seed}", f"rounds={options.rounds}"]
        self.peers = list[Program]()
        self.relayed(options.peers) if options.relay else self.meshed(options.peers, options.graph)
        self.nemesis = Nemesis([*self.peers, *filter(None, [self.relay])], self.draw)

    def meshed(self, count: int, graph: str) -> None:
        ports = [free_port() for _ in range(count)]
        self.peers = [Program(self.folder, str(peer), port, MESH_POINTS, self.stack) for peer, port in enumerate(ports)]
        self.config.append(f"peers={graph}")
        addresses = f"addresses=[{','.join(peer.proxy.address for peer in self.peers)}]"
        for number, port in enumerate(ports):
            self.give(number, addresses, "--listen", f"127.0.0.1:{port}", "--grace", str(GRACE))

    def relayed(self, count: int) -> None:
        self.relay = Program(self.folder, "relay", port := free_port(), RELAY_POINTS, self.stack)
        given = ["--log", str(self.folder / "log"), "--listen", f"127.0.0.1:{port}", "--heartbeat", "1"]
        given += ["--keys", str(self.folder / "keys" / "server"), "--round-seconds", str(GRACE)]
        self.relay.arguments = ["relay", *given, "--peers", str(count), "--min-peers", str(count // 2 + 1)]
        before = int(self.relay.proxy.address.rpartition(":")[2])
        self.peers = [Program(self.folder, str(peer), before, PEER_POINTS, self.stack) for peer in range(count)]
        for number, peer in enumerate(self.peers):
            self.give(number, "--relay", peer.proxy.address)

    def give(self, number: int, *way: str) -> None:
        """Set how a peer is started."""
        peer = self.peers[number]
        own = [f"folder={peer.run}", "--id", str(number), "--keys", str(self.folder / "keys" / f"client-{number}")]
        peer.arguments = ["peer", *self.config, *own, "--heartbeat", "1", *way]

    def play(self, until: float) -> list[str]:
        """Return what is wrong at the end. Faults begin until `until`, or until half of the rounds are done."""
        programs = [*filter(None, [self.relay]), *self.peers]
        for program in programs:
            program.start()
        while time.monotonic() < until and max(peer.rounds() for peer in self.peers) < self.rounds / 2:
            time.sleep(self.draw.uniform(*PAUSES))
            if min(peer.rounds() for peer in self.peers):
                self.nemesis.act()
            if failures := [said for program in programs if (said := program.failed())]:
                return failures
            self.look()
        self.nemesis.heal()
        done, until = 0, time.monotonic() + DEADLINE
        while any(peer.is_running() for peer in self.peers):
            if (now := sum(where := [peer.rounds() for peer in self.peers])) > done:
                done, until = now, time.monotonic() + DEADLINE
            if time.monotonic() > until:
                return [
                    f"all faults are ended, but for {DEADLINE:g} s the peers stay in rounds {where} of {self.rounds}"
                ]
            time.sleep(0.1)
            self.look()
        if unfinished := [peer.name for peer in self.peers if not peer.finished()]:
            failures = [program.failed() or "" for program in programs]
            return [f"peers {unfinished} have not finished", *filter(None, failures)]
        runs = [peer.run for peer in self.peers]
        if self.relay is None:
            return soak_checks.flaws(runs, self.acknowledged, step_of(self.config, len(runs)))
        self.relay.kill()
        check = python("-m", "fedshare", "relay", "--log", str(self.folder / "log"), "--check")
        sound = [] if check.wait() == 0 else ["the relay's log is not sound"]
        return sound + soak_checks.flaws_by_relay(runs, self.followed)

    def look(self) -> None:
        """Note what one of the peers has on disk."""
        run = self.draw.choice(self.peers).run
        if self.relay:
            ledger = (run / "ledger").read_bytes() if (run / "ledger").exists() else b""
            self.followed = max(self.followed, ledger, key=len)
        elif state := soak_checks.on_disk(run):
            self.acknowledged |= soak_checks.ledger_of(state)

    def entries(self) -> str:
        return f"{len(self.followed)} bytes of a ledger" if self.relay else f"{len(self.acknowledged)} entries"


def step_of(config: list[str], peers: int) -> soak_checks.Step:
    """The factor on the integers of a round."""
    served = [word for word in config if not word.startswith("peers=")]  # the strategy itself
    strategy = build.tried(compose.resolved(served)).strategy
    assert isinstance(strategy, Recorded)
    return lambda round: strategy.step(round, peers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="no part begins after them")
    parser.add_argument("--peers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=400, help="of each part")
    parser.add_argument("--graph", default="ring", help="as in peers=GRAPH")
    parser.add_argument("--relay", action="store_true", help="a relay instead of a graph; faults befall it, too")
    parser.add_argument("--seed", type=int, help="a number that is printed repeats the draws; without it, another")
    parser.add_argument("--folder", type=Path, help="for runs and logs; default: a temporary one, kept on failure")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="peers-soak-"))
    way = "--relay" if options.relay else f"--graph {options.graph}"
    given = f"--minutes {options.minutes:g} --peers {options.peers} --rounds {options.rounds} {way} --seed {seed}"
    print(f"{given}\nruns and logs: {folder}", flush=True)
    until, faults, part = time.monotonic() + 60 * options.minutes, Counter[str](), 0
    began = time.monotonic()
    with terminable():
        while not part or time.monotonic() < until:
            place = folder / f"part-{part}"
            place.mkdir(parents=True)
            with ExitStack() as stack:
                played = Part(place, options, seed + part, stack)
                wrong = played.play(until)
            faults += played.nemesis.faults
            said = ", ".join(f"{name} {count}" for name, count in sorted(played.nemesis.faults.items()))
            print(f"part {part}: {played.entries()}; {said or 'no faults'}", flush=True)
            if wrong:
                print("\n".join(wrong))
                return 1
            part += 1
    minutes = (time.monotonic() - began) / 60
    said = ", ".join(f"{name} {count}" for name, count in sorted(faults.items()))
    print(f"{minutes:.0f} min, {part} parts, {faults.total()} faults: {said}")
    print("every part finished: 0 entries lost, 0 taken twice, all models and sets equal, no equivocation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
