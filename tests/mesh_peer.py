"""A peer that only exchanges messages, as a process, for tests of the mesh.

    python mesh_peer.py FOLDER ME PORTS ROUNDS [OPTIONS]

FOLDER/ME.jsonl has a line a round, written when the round is over: what this peer said, and what it took from whom, as
digests. The same command goes on after the last line. PORTS: a port for each peer, of which "x" is not known; a peer's
neighbours are all others, or with --ring those beside it. It says RUNNING when it has entered its first round.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from fedshare.errors import UserError
from fedshare.experiments.signals import terminable
from fedshare.identity.identity import Identity
from fedshare.identity.signing import Signer
from fedshare.transport.mesh.links import MeshLinks
from fedshare.transport.mesh.settings import Settings

STEPS = 2


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def main(arguments: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # before there are threads
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("me", type=int)
    parser.add_argument("ports")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--listen", type=int)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--known", default="")
    parser.add_argument("--ring", action="store_true")
    parser.add_argument("--leave-after", type=int, default=0)
    parser.add_argument("--hold-after", type=int, default=0)  # the round after which it stands still until SIGUSR1
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--run", default="r")
    parser.add_argument("--version", default="1")
    for name, usual in (("wait", 30.0), ("grace", 30.0), ("timeout", 60.0), ("heartbeat", 60.0)):
        parser.add_argument(f"--{name}", type=float, default=usual)
    options = parser.parse_args(arguments)
    me, ports = options.me, options.ports.split(",")
    addresses = {peer: f"127.0.0.1:{port}" for peer, port in enumerate(ports) if port != "x"}
    count = len(ports)
    neighbours = {(me - 1) % count, (me + 1) % count} if options.ring else set(range(count))
    settings = Settings(
        *(options.run.encode().ljust(32), options.version, count, 10**6, options.wait, options.grace, options.timeout),
        heartbeat=options.heartbeat,
    )
    identity = Identity.load(options.keys / f"client-{me}") if options.keys else None
    signer = identity.signer() if identity else Signer.unprotected(f"peer {me}")
    mesh = MeshLinks(
        *(me, f"127.0.0.1:{options.listen or ports[me]}", addresses, neighbours, settings, identity, signer),
        options.folder / f"spool-{me}",
        known=[options.known] if options.known else [],
        events=options.folder / f"events-{me}.jsonl",
        say=lambda line: print(line, flush=True),
    )
    record = options.folder / f"{me}.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    round = json.loads(lines[-1])["round"] if lines else 0
    first = True
    try:
        with terminable():
            while round < options.rounds:
                round = mesh.enter(round + 1)
                if first:
                    print("RUNNING", flush=True)
                first = False
                row = play(mesh, me, neighbours - {me}, round, options.size)
                with record.open("a") as file:
                    file.write(json.dumps({"round": round, "fresh": sorted(mesh.fresh()), **row}) + "\n")
                if round == options.leave_after:
                    break
                if round == options.hold_after:
                    print("HOLDING", flush=True)
                    signal.sigwait([signal.SIGUSR1])
            mesh.leave()
    except UserError as error:
        print(error, flush=True)
        return error.exit_code
    finally:
        mesh.close()
    print("DONE", flush=True)
    return 0


def play(mesh: MeshLinks, me: int, neighbours: set[int], round: int, size: int) -> dict[str, object]:
    said, took = list[str](), list[dict[str, str]]()
    for step in range(STEPS):
        data = b"" if size == 0 else os.urandom(16).ljust(size, b"x")  # other bytes in each life
        found = mesh.swap(step, dict.fromkeys(neighbours, data), neighbours)
        last = mesh._spool.last
        assert last
        said.append(digest(next(iter(last.steps[step].values()), data)))
        took.append({str(peer): digest(message) for peer, message in found.items()})
    return {"said": said, "took": took}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
