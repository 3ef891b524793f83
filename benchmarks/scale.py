"""Seconds of a round and memory of the process by number of clients, of which as many train in each case.

    python benchmarks/scale.py [COUNT ...] [--chosen N] [--rounds N] [--engine plain|batched]

Clients share the examples of a hundred, so that memory is that of the clients and not of their data. A client that has
not trained has no memory yet. Nothing is tested.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rounds import ENGINES, build

from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Part, Simulation

DIFFERENT = 100  # clients with examples of their own


@dataclass(frozen=True)
class Repeated(Sequence[Part]):
    """The same clients again and again."""

    parts: list[Part]
    number: int

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, client: int) -> Part:  # type: ignore[override]  # a slice of clients is not needed
        if not 0 <= client < self.number:
            raise IndexError(client)
        return self.parts[client % len(self.parts)]


def resident() -> float:
    """Return the resident memory of this process in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[100, 100_000, 1_000_000])
    parser.add_argument("--chosen", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--engine", choices=ENGINES, default="batched")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = build("W3")
    parts = [made.shares[client] for client in range(DIFFERENT)]
    schedule = Schedule(rounds=options.rounds, seed=0, clients_per_round=options.chosen, evaluate_every=0)
    for count in options.counts:
        population = replace(made, shares=Repeated(parts, count))  # type: ignore[arg-type]
        network = Simulation(lambda: population, population=population, engine=ENGINES[options.engine])  # noqa: B023
        state, seconds = population.strategy.init(population.scratch.initial, count), list[float]()
        rounds = run_server(population.strategy, network, state, schedule)
        for _ in range(options.rounds):
            began = time.perf_counter()
            next(rounds)
            seconds.append(time.perf_counter() - began)
        print(f"{count:>9,} clients: {1000 * median(seconds[2:]):6.1f} ms a round, {resident():,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
