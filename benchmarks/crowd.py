"""Many clients on one server: seconds a round, and memory a client.

    python benchmarks/crowd.py [--clients N] [--rounds N] [--repeat N] [--tls] [--beside CHECKOUT] [--json FILE]

A server in a process of its own plays rounds of federated averaging with light clients, which answer at once what a
real client once answered. Its memory is read with 100 clients and with all of them, after the same number of rounds,
and is that of the process as the system tells it (VmRSS; kB are 10^3 bytes). With ``--beside``, the server of another
checkout of fedshare plays with as many clients of its own, and the two take turns: a load on the machine is on both.
A model has 650 numbers, and every round trains and tests. ``--bare``: no rounds of learning, but as many messages of a
model's size on the bare stream.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
HOST, FIRST, WAIT = "127.0.0.1", 100, 120.0  # WAIT: seconds for clients to come
CONFIG = json.dumps({"overrides": " ".join(f"key{i}=value{i}" for i in range(200))})  # as long as one is


# One server and its clients, of whatever fedshare is on the path.


FLOWER = ("apps", "envelope", "grid", "inprocess", "network", "participant", "stream")
OLDER = {  # where a checkout of fedshare 0.2 has what is asked for here
    "fedshare.training.scratch": "fedshare.scratch",
    "fedshare.identity.keys": "fedshare.keys",
    "fedshare.identity.identity": "fedshare.keys",
    "fedshare.transport.flower": "fedshare.flower",
    **{f"fedshare.transport.flower.{name}": f"fedshare.flower.{name}" for name in FLOWER},
    "fedshare.transport.stream": "fedshare.stream",
    **{f"fedshare.transport.stream.{name}": f"fedshare.stream.{name}" for name in ("server", "frames")},
    "fedshare.transport.stream.settings": "fedshare.stream.server",
}


def by_new_names() -> None:
    """Let an older checkout's modules be found by the names that they have in this one."""
    if importlib.util.find_spec("fedshare.transport") is None:
        for new, old in OLDER.items():
            sys.modules[new] = importlib.import_module(old)


def population(clients: int) -> Any:
    import torch
    from torch import nn

    from fedshare import seeds
    from fedshare.client import Training
    from fedshare.data.dataset import Examples
    from fedshare.simulation import Part, Population
    from fedshare.strategies.fedavg import FedAvg
    from fedshare.training.scratch import Scratch

    one = Examples(torch.zeros(1, 64), torch.zeros(1, dtype=torch.long))
    training = Training(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    with seeds.scope(0, "model"):
        model = nn.Linear(64, 10)
    return Population(FedAvg(), Scratch(model), training, [Part(one, one)] * clients, 0)


def recorded(clients: int, folder: str) -> Callable[[int, bytearray], bytes]:
    """Answers of a real ClientApp: of each client when it is asked who it is, of the first for all when it trains."""
    from flwr.app import Context, RecordDict, UserConfig

    from fedshare.transport.flower import private
    from fedshare.transport.flower.apps import client_app
    from fedshare.transport.flower.envelope import seal, unseal
    from fedshare.transport.flower.grid import arrived, node_of
    from fedshare.transport.flower.inprocess import ask

    app = client_app(lambda run_config, node_config: ("", population(clients)))
    private.enter_run()
    known: dict[bytes, bytes] = {}

    def answer(client: int, body: bytearray) -> bytes:
        kind = bytes(body[4:24])
        if kind in known:
            return known[kind]
        letter, node = unseal(body), node_of(client)
        config: UserConfig = {"partition-id": client, "num-partitions": clients, "state-dir": folder}
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
        assert letter.content is not None
        said = ask(app, arrived(node, "", letter.type, letter.group, letter.content), context)
        assert not said.has_error(), said.error.reason
        given = b"".join(seal(said))
        if letter.type in ("train", "evaluate"):
            known[kind] = given
        return given

    return answer


def clients(address: str, keys: str, bare: bool, orders: Connection) -> None:
    """Be as many clients as the orders say, with numbers from 0; without `keys` in the clear."""
    import fedshare

    by_new_names()
    sys.path.insert(0, str(HERE.parent))
    from light import Crowd, Light

    crowd = Crowd()
    with tempfile.TemporaryDirectory() as folder:
        most = orders.recv()
        answer = (lambda id, body: bytes(body)) if bare else recorded(most, folder)
        count = lost = 0
        while (wanted := orders.recv() if orders.poll() else count) >= 0:
            lost += len(crowd.lost)
            again, crowd.lost = crowd.lost, []
            for id in [*again, *range(count, wanted)]:  # who was cut off comes back, as real clients do
                context = _context(keys, id) if keys else None
                crowd.add(Light(address, id, fedshare.__version__, answer, context))
                crowd.step(0)
            count = wanted
            if lost > 2 * most:
                sys.exit(f"light clients lost their connection {lost} times")
            crowd.step(0.05)


def _context(keys: str, id: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=f"{keys}/client-{id}/ca.crt")
    context.load_cert_chain(f"{keys}/client-{id}/client.crt", f"{keys}/client-{id}/client.key")
    context.set_alpn_protocols(["h2"])
    return context


def serve(most: int, keys: str, bare: bool) -> None:
    """Obey the lines of stdin: "grow N", "rounds N"; answer each with a line of JSON."""
    import fedshare

    by_new_names()
    from fedshare.identity.identity import Identity
    from fedshare.transport.stream.server import StreamServer
    from fedshare.transport.stream.settings import Settings

    try:
        from fedshare.transport.stream import descriptors

        descriptors.raise_limit()
    except ImportError:  # an older one
        pass
    identity = Identity.load(Path(keys) / "server") if keys else None
    settings = Settings(fedshare.__version__, config=CONFIG, clients=most, heartbeat=60.0)
    server = StreamServer(f"{HOST}:0", identity, settings)
    server.start()
    ours, theirs = multiprocessing.Pipe()
    crowd = multiprocessing.get_context("spawn").Process(
        target=clients, args=(server.address, keys, bare, theirs), daemon=True
    )
    crowd.start()
    ours.send(most)
    level = on_stream(server) if bare else on_network(server, most)
    next(level)
    print(json.dumps({"version": fedshare.__version__, "from": fedshare.__file__}), flush=True)
    for line in sys.stdin:
        what, _, number = line.partition(" ")
        if what == "grow":
            began = time.perf_counter()
            ours.send(int(number))
            level.send(int(number))
            seconds = time.perf_counter() - began
            found: Any = {"seconds": seconds, "memory": resident(), "descriptors": len(os.listdir("/proc/self/fd"))}
        else:
            times, computed = [], []
            for _ in range(int(number)):
                began, before = time.perf_counter(), time.process_time()
                level.send(None)
                times.append(time.perf_counter() - began)
                computed.append(time.process_time() - before)
            found = {"seconds": times, "memory": resident(), "computed": computed}
        print(json.dumps(found), flush=True)
    ours.send(-1)
    crowd.join(10)
    server.close("")


Level = Iterator[None]  # takes how many clients are to be waited for, or None for a round


def on_stream(server: Any) -> Any:
    body = bytes(2600)
    order, count = (yield), 0
    while True:
        if order:
            count = order
            _wait(server, count)
        else:
            for id in range(count):
                server.send(id, [body])
            answers = 0
            while answers < count:
                some = server.receive(WAIT)
                assert some
                assert all(answer.body == body for answer in some)
                answers += len(some)
        order = yield


def on_network(server: Any, most: int) -> Any:
    from fedshare.rounds import Schedule, run_server
    from fedshare.transport.flower.network import FlowerNetwork
    from fedshare.transport.flower.participant import Terms
    from fedshare.transport.flower.stream import StreamGrid

    made = population(most)
    network = FlowerNetwork(
        StreamGrid(server), Terms.of("", made), bytes(8), WAIT, most, FIRST, WAIT, say=lambda line: None
    )
    init: Any = made.strategy.init
    try:
        state = init(made.scratch.initial, most)
    except TypeError:  # an older one
        state = init(made.scratch.initial)
    rounds = run_server(made.strategy, network, state, Schedule(rounds=10**6, seed=0))
    with suppress(ImportError):  # an older one
        from fedshare.machine.garbage import settled

        settled().__enter__()  # as `fedshare server` plays its rounds
    order, count = (yield), 0
    while True:
        if order:
            count = order
            _wait(server, count)
            while len(network.client_ids()) < count:
                if network.refused:
                    print("refused:", network.refused, flush=True)
                time.sleep(0.01)
        else:
            row = next(rounds).row
            assert len(row["clients"]) == count, row
            assert not row["untested"], row["untested"]
        order = yield


def _wait(server: Any, count: int) -> None:
    until = time.monotonic() + WAIT
    while len(server.present()) < count:
        assert time.monotonic() < until, f"waited {WAIT:g} s for {count} clients; have {len(server.present())}"
        server.wait_for_change(0.1)


def resident() -> int:
    """Bytes of memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


# Servers beside each other.


class Server:
    """The server of one checkout, as a process."""

    def __init__(self, checkout: Path, most: int, keys: str, bare: bool) -> None:
        self.name = checkout.name
        flags = ["--keys", keys, *["--bare"] * bare]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--serve", str(most), *flags],
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
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keys", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.keys, options.bare)
        return
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
