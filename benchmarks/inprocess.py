"""The cost of a client that does nothing, when all clients are in this process.

    python benchmarks/inprocess.py [CLIENTS ...] [--repeat N] [--json FILE]

Medians, in milliseconds, of a round and of one client in it: Flower messages on InProcessGrid, a complete exchange of
fedshare on top of it, and, if Ray is installed, the same Flower app in Flower's own simulation.
"""

import argparse
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import trivial
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedshare.network import Purpose
from fedshare.transport.flower.apps import client_app
from fedshare.transport.flower.inprocess import InProcessGrid
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Terms

sys.path.append(str(Path(__file__).parent / "echo"))
from echo.client_app import app as echo
from echo.server_app import exchange, present, records

WAIT = 600.0  # seconds for a round


def on_grid(clients: int, repeat: int) -> list[float]:
    return rounds(InProcessGrid(echo, clients, {}), clients, repeat)


def on_network(clients: int, repeat: int) -> list[float]:
    population = trivial.population(clients)
    with tempfile.TemporaryDirectory() as folder:
        app = client_app(lambda run_config, node_config: ("", population))
        grid = InProcessGrid(app, clients, {}, {"state-dir": folder})
        network = FlowerNetwork(grid, Terms.of("", population), bytes(8), WAIT, clients)
        downloads = dict.fromkeys(network.client_ids(), trivial.payload(0))
        return seconds(partial(network.exchange, Purpose.TRAIN, 1, downloads), repeat)


def on_ray(clients: int, repeat: int) -> list[float]:
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    app, times = ServerApp(), list[float]()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        times.extend(rounds(grid, clients, max(1, repeat // 10)))  # in seconds

    run_simulation(app, echo, clients, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return times


def rounds(grid: Grid, clients: int, repeat: int) -> list[float]:
    nodes, content = present(grid, clients, WAIT), records(0)
    return seconds(partial(exchange, grid, nodes, content, WAIT), repeat)


def seconds(once: Callable[[], object], repeat: int) -> list[float]:
    """Time `repeat` rounds, after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--repeat", type=int, default=20, help="rounds to take the median of")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    ways = {"InProcessGrid": on_grid, "FlowerNetwork on it": on_network}
    if importlib.util.find_spec("ray"):
        ways["Flower's simulation"] = on_ray
    load = os.getloadavg()
    print(f"{os.cpu_count()} cores, load {load[0]:.2f}")
    found: dict[str, dict[int, float]] = {}
    for way, run in ways.items():
        for clients in options.clients:
            took = median(run(clients, options.repeat))
            found.setdefault(way, {})[clients] = took
            each = f"{1e3 * took / clients:7.3f} ms a client"
            print(f"{way:20} {clients:6} clients {1e3 * took:9.2f} ms a round {each}", flush=True)
    if len(ways) < 3:
        print("Ray is not installed: without Flower's own simulation beside it")
    if options.json:
        options.json.write_text(json.dumps({"load": load, "seconds": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
