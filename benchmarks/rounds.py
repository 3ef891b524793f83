"""Samples per second of a FedAvg round: this project compared with a plain PyTorch loop, on the same synthetic data.

    python benchmarks/rounds.py [WORKLOAD ...] [--workers N] [--repeat N]

The loop makes a model and an optimizer for each client, as most research code does. Runs alternate; medians and the
ratio of medians are printed. Nothing is learned: the data are noise.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from torch import nn

from fedshare import seeds
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.models import CNN, MLP, Logistic
from fedshare.network import Purpose
from fedshare.rounds import sample
from fedshare.simulation import Part, Population, Simulation
from fedshare.strategies.fedavg import FedAvg
from fedshare.tensors import mean
from fedshare.training.scratch import Scratch


@dataclass(frozen=True)
class Workload:
    model: type[nn.Module]
    shape: list[int]
    clients: int  # in total
    chosen: int  # per round
    examples: int  # per client
    batch: int
    options: dict[str, object] = field(default_factory=dict)  # of the model

    def module(self) -> nn.Module:
        with seeds.scope("benchmark", "model"):
            return self.model(shape=self.shape, classes=10, **self.options)

    def shares(self) -> list[Part]:
        random = seeds.generator("benchmark", "data")
        x = torch.rand(self.clients * self.examples, *self.shape, generator=random)
        y = torch.randint(10, (len(x),), generator=random)
        parts = zip(x.split(self.examples), y.split(self.examples), strict=True)
        return [Part(Examples(inputs, targets), Examples(inputs[:1], targets[:1])) for inputs, targets in parts]


WORKLOADS = {
    "W1": Workload(CNN, [3, 32, 32], 100, 10, 500, 20, {"padding": "valid"}),
    "W2m": Workload(MLP, [1, 28, 28], 1000, 50, 60, 10, {"hidden": [200, 200]}),
    "W2c": Workload(CNN, [1, 28, 28], 1000, 50, 60, 10, {"padding": "valid"}),
    "W3": Workload(Logistic, [60], 10_000, 200, 10, 10),
    "W3b": Workload(MLP, [784], 10_000, 200, 10, 10, {"hidden": [32]}),
}


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)  # type: ignore[arg-type]


def build(name: str) -> Population:
    workload = WORKLOADS[name]
    training = Training(optimizer=sgd, epochs=1, batch_size=workload.batch)
    return Population(FedAvg(), Scratch(workload.module()), training, workload.shares(), 0)


def plain_round(workload: Workload, model: nn.Module, shares: list[Part], chosen: list[int]) -> None:
    """Run the textbook loop: copy the model, train the copy, average the copies."""
    answers = []
    for client in chosen:
        train, *_ = shares[client]
        copy = workload.module()
        copy.load_state_dict(model.state_dict())
        optimizer = sgd(copy.parameters())
        for rows in torch.randperm(len(train)).split(workload.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(copy(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
        answers.append(copy.state_dict())
    model.load_state_dict(mean(answers))


def measure(name: str, workers: int, repeat: int) -> None:
    workload = WORKLOADS[name]
    shares, model = workload.shares(), workload.module()
    with Simulation(partial(build, name)) as here, Simulation(partial(build, name), workers) as parallel:
        state = here.population.strategy.init(here.population.scratch.initial, here.population.clients)

        def fedshare_round(network: Simulation, round: int, chosen: list[int]) -> None:
            strategy = network.population.strategy
            downloads = {client: strategy.download(state, client, Purpose.TRAIN) for client in chosen}
            strategy.aggregate(state, round, network.exchange(Purpose.TRAIN, round, downloads).answers)  # type: ignore[arg-type]

        ways: dict[str, Callable[[int, list[int]], None]] = {
            "plain loop": lambda round, chosen: plain_round(workload, model, shares, chosen),
            "fedshare, 1 process": partial(fedshare_round, here),
            f"fedshare, {workers} workers": partial(fedshare_round, parallel),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for round in range(repeat + 1):  # the first one warms up
            chosen = sample(list(range(workload.clients)), workload.chosen, 0, round)
            for way, run in ways.items():
                began = time.perf_counter()
                run(round + 1, chosen)
                seconds[way].append(time.perf_counter() - began)
    count = workload.chosen * workload.examples
    rates = {way: count / median(times[1:]) for way, times in seconds.items()}
    for way, rate in rates.items():
        print(f"{name:4} {way:22} {rate:10,.0f} samples/s   {rate / rates['plain loop']:5.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[[], *WORKLOADS], default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.workloads or WORKLOADS:
        measure(name, options.workers, options.repeat)


if __name__ == "__main__":
    main()
