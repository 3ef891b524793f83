#!/usr/bin/env python
"""A long random run of peers among faults, and what must hold after each part of it.

    python benchmarks/peers_soak.py [--minutes N] [--peers N] [--seed N] [--folder FOLDER]

Peers are `fedshare peer` processes of this machine, with TLS, that train one ledger (strategy=onebyte) over the graph
of `--graph`. Each is dialled through a proxy. In every part, faults that the seed draws befall them: kill -9, also at
named points in the code, SIGSTOP, resets, black holes, flipped bits, delays, slow links; shorter and longer than the
others wait. Then all faults are ended, and the peers must finish their rounds within minutes. At the end all must have
the same model, the same entries, every entry that was on any disk at any time, each once in their sums, and no proof
that one of them signed two things in a round. Exit status 1 if not; the logs are kept.

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
from forked import Process, python
from nemesis import GRACE, Nemesis
from proxy import Proxy

CONFIG = ["strategy=onebyte", "data=digits", "model=logistic", "client.batch_size=16", "clients_per_round=null"]
DEADLINE = 300.0  # seconds in which healed peers must finish
PAUSES = 0.3, 2.0  # seconds between faults


class Peer:
    """A process that is started again and again, behind its proxy."""

    def __init__(self, folder: Path, number: int, stack: ExitStack) -> None:
        self.number, self.folder, self.port = number, folder, free_port()
        self.run, self.log = folder / f"run-{number}", folder / f"peer-{number}.log"
        self.proxy = stack.enter_context(Proxy(self.port, seed=number))
        self.arguments: list[str] = []
        self.process: Process | None = None
        stack.callback(self.kill)

    def start(self, failpoint: str = "") -> None:
        environment = os.environ | {"FEDSHARE_FAILPOINT": failpoint, "PYTHONUNBUFFERED": "1"}
        with self.log.open("a") as log:
            words = ("-m", "fedshare", "peer", *self.arguments)
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

    def failed(self) -> str | None:
        """Why it is over though nobody has killed it; None if it runs, was killed, or has finished."""
        status = self.process.poll() if self.process else None
        if status in (None, 0, -signal.SIGKILL):
            return None
        return f"peer {self.number} ended with status {status}:\n{self.log.read_text()[-2000:]}"

    def finished(self) -> bool:
        return self.process is not None and self.process.poll() == 0

    def rounds(self) -> int:
        return lines(self.run / "metrics.jsonl")


class Part:
    """One run from its first round to its last."""

    def __init__(self, folder: Path, options: argparse.Namespace, seed: int, stack: ExitStack) -> None:
        self.draw, self.rounds = random.Random(seed), options.rounds
        self.peers = [Peer(folder, number, stack) for number in range(options.peers)]
        self.nemesis = Nemesis(list(self.peers), self.draw)
        keys.make(folder / "keys", None, options.peers, 1, peers=True)
        addresses = ",".join(peer.proxy.address for peer in self.peers)
        self.config = [*CONFIG, f"peers={options.graph}", f"partition.clients={options.peers}", f"seed={seed}"]
        self.config += [f"rounds={options.rounds}", "evaluate_every=0"]
        for peer in self.peers:
            own = [f"folder={peer.run}", f"addresses=[{addresses}]", "--listen", f"127.0.0.1:{peer.port}"]
            own += ["--id", str(peer.number), "--keys", str(folder / "keys" / f"client-{peer.number}")]
            peer.arguments = [*self.config, *own, "--grace", str(GRACE), "--heartbeat", "1"]
        self.acknowledged: soak_checks.Ledger = {}

    def play(self, until: float) -> list[str]:
        """Return what is wrong at the end. Faults begin until `until`, or until half of the rounds are done."""
        for peer in self.peers:
            peer.start()
        while time.monotonic() < until and max(peer.rounds() for peer in self.peers) < self.rounds / 2:
            time.sleep(self.draw.uniform(*PAUSES))
            if min(peer.rounds() for peer in self.peers):
                self.nemesis.act()
            if failures := [said for peer in self.peers if (said := peer.failed())]:
                return failures
            self.look()
        self.nemesis.heal()
        until = time.monotonic() + DEADLINE
        while any(peer.is_running() for peer in self.peers):
            if time.monotonic() > until:
                where = [peer.rounds() for peer in self.peers]
                return [f"{DEADLINE:g} s after all faults were ended, the peers are in rounds {where} of {self.rounds}"]
            time.sleep(0.1)
            self.look()
        if unfinished := [peer.number for peer in self.peers if not peer.finished()]:
            failures = [peer.failed() or "" for peer in self.peers]
            return [f"peers {unfinished} have not finished", *filter(None, failures)]
        strategy = build.tried(compose.resolved([*self.config, f"folder={self.peers[0].folder}"])).strategy
        step = lambda round: strategy.inner.step(round, len(self.peers))  # noqa: E731
        return soak_checks.flaws([peer.run for peer in self.peers], self.acknowledged, step)

    def look(self) -> None:
        """Note what one of the peers has on disk."""
        if state := soak_checks.on_disk(self.draw.choice(self.peers).run):
            self.acknowledged |= soak_checks.ledger_of(state)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="no part begins after them")
    parser.add_argument("--peers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=400, help="of each part")
    parser.add_argument("--graph", default="ring", help="as in peers=GRAPH")
    parser.add_argument("--seed", type=int, help="a number that is printed repeats the draws; without it, another")
    parser.add_argument("--folder", type=Path, help="for runs and logs; default: a temporary one, kept on failure")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="peers-soak-"))
    print(
        f"--minutes {options.minutes:g} --peers {options.peers} --rounds {options.rounds} --graph {options.graph}",
        end="",
    )
    print(f" --seed {seed}\nruns and logs: {folder}", flush=True)
    until, faults, entries, part = time.monotonic() + 60 * options.minutes, Counter[str](), 0, 0
    began = time.monotonic()
    with terminable():
        while not part or time.monotonic() < until:
            place = folder / f"part-{part}"
            place.mkdir(parents=True)
            with ExitStack() as stack:
                played = Part(place, options, seed + part, stack)
                wrong = played.play(until)
            faults += played.nemesis.faults
            entries += len(played.acknowledged)
            said = ", ".join(f"{name} {count}" for name, count in sorted(played.nemesis.faults.items()))
            print(f"part {part}: {len(played.acknowledged)} entries; {said or 'no faults'}", flush=True)
            if wrong:
                print("\n".join(wrong))
                return 1
            part += 1
    minutes = (time.monotonic() - began) / 60
    said = ", ".join(f"{name} {count}" for name, count in sorted(faults.items()))
    print(f"{minutes:.0f} min, {part} parts, {entries} entries, {faults.total()} faults: {said}")
    print("every part finished: 0 entries lost, 0 taken twice, all models and sets equal, no equivocation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
