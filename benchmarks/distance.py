"""The distance between the engines, round by round, on the digits of scikit-learn.

    python benchmarks/distance.py [OVERRIDE ...] [--rounds N]

Runs one config under both engines and prints the largest difference in a parameter, the distance of the models relative
to how far the plain one has moved, and both accuracies.
"""

import argparse
from collections.abc import Iterator

import torch
from rounds import ENGINES

from fedshare.experiments.config import build, compose
from fedshare.rounds import Round, Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.tensors import norm, subtract

CONFIG = ["data=digits", "model=mlp", "partition.clients=50", "strategy=fedavg", "workers=0"]


def played(overrides: list[str], engine: str, rounds: int) -> Iterator[Round]:
    """Play the rounds; the first item is the state before them."""
    population = build.simulated(compose.resolved([*CONFIG, *overrides]))
    network = Simulation(lambda: population, population=population, engine=ENGINES[engine])
    state = population.strategy.init(population.scratch.initial, population.clients)
    schedule = Schedule(rounds=rounds, seed=0, clients_per_round=10, evaluate_every=1)
    yield from run_server(population.strategy, network, state, schedule, task=population.task)
    if network.reasons:
        raise SystemExit(f"not batched: {'; '.join(sorted(network.reasons))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the config: model=cnn client=adam")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    first = build.simulated(compose.resolved([*CONFIG, *options.overrides])).scratch.initial
    print("round  largest difference  relative  accuracy, plain  batched")
    runs = (played(options.overrides, engine, options.rounds) for engine in ("plain", "batched"))
    for one, other in zip(*runs, strict=True):
        plain, batched = one.state["params"], other.state["params"]
        apart = subtract(plain, batched)
        largest = max(float(tensor.abs().max()) for tensor in apart.values())
        relative = norm(apart) / norm(subtract(plain, first))
        accuracies = one.row["accuracy"], other.row["accuracy"]
        print(
            f"{one.number:5}  {largest:18.1e}  {relative:8.1e}  {accuracies[0]:15.4f}  {accuracies[1]:7.4f}", flush=True
        )


if __name__ == "__main__":
    main()
