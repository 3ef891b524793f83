"""The server of a crowd, for the fedshare on the path; started by `crowd.py`.

python benchmarks/crowd_server.py CLIENTS [--keys DIR] [--bare]
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from crowd_clients import by_new_names, clients, population

HOST, FIRST, WAIT = "127.0.0.1", 100, 120.0  # WAIT: most seconds to wait for clients
CONFIG = json.dumps({"overrides": " ".join(f"key{i}=value{i}" for i in range(200))})  # of a realistic length


def serve(most: int, keys: str, bare: bool) -> None:
    """Execute the lines of stdin, "grow N" and "rounds N"; answer each with a line of JSON."""
    import fedshare

    by_new_names()
    from fedshare.identity.identity import Identity
    from fedshare.transport.stream.server import StreamServer
    from fedshare.transport.stream.settings import Settings

    try:
        from fedshare.transport.stream import descriptors

        descriptors.raise_limit()
    except ImportError:  # an older version
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


Level = Iterator[None]  # is sent the number of clients to wait for, or None for a round


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
    except TypeError:  # an older version
        state = init(made.scratch.initial)
    rounds = run_server(made.strategy, network, state, Schedule(rounds=10**6, seed=0))
    with suppress(ImportError):  # an older version
        from fedshare.machine.garbage import settled

        tuning = settled()  # as in `fedshare server`; it ends with the last reference to it
        tuning.__enter__()
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
    """Return the resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("clients", type=int)
    parser.add_argument("--keys", default="", help="a folder of certificates; without one in the clear")
    parser.add_argument("--bare", action="store_true", help="messages on the bare stream, no learning")
    options = parser.parse_args()
    serve(options.clients, options.keys, options.bare)
