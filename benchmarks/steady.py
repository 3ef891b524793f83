"""The memory of a long run: many rounds of ragged clients, with the process's memory now and then.

    python benchmarks/steady.py [--rounds N] [--engine plain|batched] [--workers N]

Plans are made, clients get memories and the allocator settles in the first rounds. Exit status 1 if the memory grows by
more than 2 % in the second half.
"""

import argparse
import sys
import time
from functools import partial

import torch
from memory import read
from rounds import ENGINES

from fedshare import seeds
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.models import MLP
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Part, Population, Simulation
from fedshare.strategies.ditto import Ditto
from fedshare.training.scratch import Scratch

CLIENTS, CHOSEN, ALLOWED = 200, 40, 1.02


def population() -> Population:
    """Clients with 5 to 44 examples and memories of their own."""
    random = seeds.generator("steady")
    shares = []
    for client in range(CLIENTS):
        x = torch.randn(5 + client % 40, 32, generator=random)
        part = Examples(x, torch.randint(10, (len(x),), generator=random))
        shares.append(Part(part, part))
    with seeds.scope("steady", "model"):
        scratch = Scratch(MLP(shape=[32], classes=10, hidden=[32]))
    training = Training(optimizer=partial(torch.optim.SGD, lr=0.01), batch_size=10)
    return Population(Ditto(), scratch, training, shares, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--engine", choices=ENGINES, default="batched")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    schedule = Schedule(rounds=options.rounds, seed=0, clients_per_round=CHOSEN, evaluate_every=10)
    seen, began = [read("VmRSS")], time.monotonic()
    with Simulation(population, options.workers, engine=ENGINES[options.engine]) as network:
        made = network.population
        state = made.strategy.init(made.scratch.initial, made.clients)
        for done in run_server(made.strategy, network, state, schedule):
            if done.number % max(1, options.rounds // 10) == 0:
                seen.append(read("VmRSS"))
                took = time.monotonic() - began
                print(
                    f"round {done.number}: {seen[-1] / 1e6:.1f} MB, {1000 * took / done.number:.1f} ms a round",
                    flush=True,
                )
    grown = seen[-1] / seen[len(seen) // 2]
    print(f"the second half: {grown:.3f} times the memory of its beginning; at most {ALLOWED} is allowed")
    return int(grown > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
