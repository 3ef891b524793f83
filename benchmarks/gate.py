"""The cost of a gate: rounds and bytes per second through it and at a server's own port, two clients, mutual TLS.

    python benchmarks/gate.py [--rounds N] [--repeat N] [--json FILE]

Every client is a process, and sends back what it receives. Direct and gated turns alternate, because the machine's
speed varies; results are medians over the turns. MB are 10^6 bytes, both ways together.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from echoes import CLIENTS, HOST, deployed
from stream import resident, seconds

from fedshare.identity import keys
from fedshare.transport.stream import sockets

LARGE = 40_000_000  # bytes
WAYS = ("direct", "gate")


@contextmanager
def gate(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the address of a gate in its own process, and its process id."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        address = f"{HOST}:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "fedshare", "gate", "--listen", address, "--keys", str(folder / "keys")]
    with subprocess.Popen([*command, "--socket", str(folder / "gate")], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if "listening on" not in (line := process.stdout.readline()):
                raise RuntimeError(f"the gate does not listen: {line}")
            yield address, process.pid
        finally:
            process.terminate()


def turn(folder: Path, through: tuple[str, str] | None, rounds: int) -> tuple[float, float]:
    """Return the rounds per second of an almost empty message, and the MB per second of a large one."""
    with deployed("stream", folder, gate=through) as here:
        small, large = here.prepare(0, 1), here.prepare(LARGE, 1)
        seconds(small, rounds // 5)
        rate = rounds / sum(seconds(small, rounds))
        large()
        return rate, 2 * CLIENTS * LARGE / 1e6 / median(seconds(large, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="of an almost empty message, in each turn")
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    print(f"{CLIENTS} clients, TLS with client certificates; {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys.make(folder / "keys", [HOST], CLIENTS, 1)
        with gate(folder) as (address, pid), sockets.taken(sockets.folder(folder / "gate"), "bench", CLIENTS) as path:
            before = resident(pid, reset=True)
            for _ in range(options.repeat):
                found["direct"].append(turn(folder, None, options.rounds))
                found["gate"].append(turn(folder, (address, f"unix:{path}"), options.rounds))
            peak = resident(pid)
    for position, unit in enumerate(("rounds/s", "MB/s")):
        direct, gated = (median(one[position] for one in found[way]) for way in WAYS)
        ratios = [b[position] / a[position] for a, b in zip(found["direct"], found["gate"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{unit:9} direct {direct:8,.0f}   gate {gated:8,.0f}   ratio {median(ratios):.2f} ({spread})")
    if before is not None and peak is not None:
        print(f"the gate: at most {peak / 1e6:.0f} MB resident, {before / 1e6:.0f} before")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
