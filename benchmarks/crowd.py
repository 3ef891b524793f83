"""Many clients on one server: seconds per round, and memory per client.

    python benchmarks/crowd.py [--clients N] [--rounds N] [--repeat N] [--tls] [--beside CHECKOUT] [--json FILE]

A server in its own process plays rounds of federated averaging with light clients, which answer at once with recorded
answers of a real client. Memory is that of the server process as reported by the system (VmRSS; kB are 10^3 bytes),
with 100 clients and with all of them, after the same number of rounds. With ``--beside``, the server of another
checkout of fedshare plays with as many clients of its own, and the two alternate, so that load on the machine affects
both. A model has 650 parameters, and every round trains and tests. ``--bare``: no learning, but as many messages of a
model's size on the bare stream.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from crowd_server import FIRST, HOST

HERE = Path(__file__).resolve()


class Server:
    """The server of one checkout, in its own process."""

    def __init__(self, checkout: Path, most: int, keys: str, bare: bool) -> None:
        self.name = checkout.name
        flags = ["--keys", keys, *["--bare"] * bare]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE.with_name("crowd_server.py")), str(most), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        )
        self.version = self._hear()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
            print(f"{self.name}: {line}", end="", file=sys.stderr)
        sys.exit(f"{self.name}: the server ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="in a row, before the other server has its turn")
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    parser.add_argument("--tls", action="store_true", help="mutual TLS, with a certificate for each client")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="of another fedshare, to compare with")
    parser.add_argument("--bare", action="store_true", help="messages on the bare stream, no learning")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    checkouts = [HERE.parents[1], *([options.beside.resolve()] if options.beside else [])]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        keys = ""
        if options.tls:
            from fedshare.identity import keys as authority

            keys = f"{folder}/keys"
            authority.make(Path(keys), [HOST], options.clients, 1)
        servers = [stack.enter_context(Server(c, options.clients, keys, options.bare)) for c in checkouts]
        for server in servers:
            server.ask(f"grow {FIRST}")
            few = server.ask("rounds 10")["memory"]
            grown = server.ask(f"grow {options.clients}")
            many = server.ask("rounds 2")["memory"]
            found[server.name] = {"few": few, "many": many, "joined": grown["seconds"], "seconds": [], "computed": []}
            print(
                f"{server.name}: {(many - few) / (options.clients - FIRST) / 1e3:.0f} kB a client beyond the first "
                f"{FIRST}: {few / 1e6:.0f} and {many / 1e6:.0f} MB; {options.clients - FIRST} joined in "
                f"{grown['seconds']:.1f} s; {grown['descriptors']} descriptors",
                flush=True,
            )
        for _ in range(options.repeat):
            for server in servers:
                turn = server.ask(f"rounds {options.rounds}")
                for key in ("seconds", "computed"):
                    found[server.name][key] += turn[key]
        for server in servers:
            last = server.ask("rounds 1")["memory"]
            times, computed = found[server.name]["seconds"], median(found[server.name]["computed"])
            spread = f"{min(times):.3f} to {max(times):.3f}"
            print(
                f"{server.name}: {median(times):.3f} s a round ({spread}); the server computes {computed:.3f} s of it; "
                f"{last / 1e6:.0f} MB in the end"
            )
        if len(servers) > 1:
            faster = {
                key: median(found[servers[1].name][key]) / median(found[servers[0].name][key])
                for key in ("seconds", "computed")
            }
            print(
                f"beside {servers[1].name}: rounds {faster['seconds']:.2f} times as fast, "
                f"with {1 / faster['computed']:.2f} times its computing"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
