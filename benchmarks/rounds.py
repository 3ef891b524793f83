"""Samples per second of a FedAvg round: this project compared with two PyTorch loops, on the same synthetic data.

    python benchmarks/rounds.py [WORKLOAD ...] [--workers N ...] [--repeat N] [--json]

The plain loop makes a model and an optimizer for each client, as most research code does; the flat loop is the fastest
that eager PyTorch allows without batching clients: one model whose parameters are views of one vector, loaded and
stepped as a whole. Runs alternate; the medians, the smallest and the largest, and the ratios to the flat loop with as
many processes as there are workers at most are printed. Nothing is learned: the data are noise, the same that
`benchmarks/peers/run.py` gives to other libraries.
"""

import argparse
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import fedshare
from fedshare import seeds
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.engine.batched import Batched
from fedshare.engine.single import Make, Single
from fedshare.models import CNN, MLP, Logistic
from fedshare.network import Purpose
from fedshare.rounds import sample
from fedshare.simulation import Part, Population, Simulation
from fedshare.strategies.fedavg import FedAvg
from fedshare.tensors import mean
from fedshare.training.scratch import Scratch

sys.path.append(str(Path(__file__).parent / "peers"))
import arrays
from arrays import LR

ENGINES: dict[str, Make] = {"plain": Single, "batched": Batched}


@dataclass(frozen=True)
class Workload(arrays.Workload):
    name: str = ""
    model: Callable[..., nn.Module] = Logistic

    def module(self) -> nn.Module:
        with seeds.scope("benchmark", "model"):
            return self.model(shape=self.shape, classes=arrays.CLASSES)

    def shares(self) -> list[Part]:
        x, y = (torch.from_numpy(array) for array in arrays.generate(self.name))
        return [
            Part(Examples(inputs, targets), Examples(inputs[:1], targets[:1]))
            for inputs, targets in zip(x, y, strict=True)
        ]


MODELS: dict[str, Callable[..., nn.Module]] = {
    "W1": partial(CNN, padding="valid"),
    "W2m": MLP,
    "W2c": partial(CNN, padding="valid"),
    "W3": Logistic,
    "W3b": partial(MLP, hidden=[32]),
}
WORKLOADS = {name: Workload(**vars(size), name=name, model=MODELS[name]) for name, size in arrays.WORKLOADS.items()}


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR)  # type: ignore[arg-type]


def build(name: str, layout: Any = "contiguous", precision: Any = "float32") -> Population:
    workload = WORKLOADS[name]
    training = Training(optimizer=sgd, epochs=1, batch_size=workload.batch, layout=layout, precision=precision)
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


class Flat:
    """The flat loop's model: its parameters and gradients are views of two vectors."""

    def __init__(self, workload: Workload, shares: list[Part]) -> None:
        self._workload, self._shares, self._module = workload, shares, workload.module()
        parameters = list(self._module.parameters())
        self.vector = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self._gradient = torch.zeros_like(self.vector)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.data = self.vector[start:end].view_as(parameter)
            parameter.grad = self._gradient[start:end].view_as(parameter)
            start = end

    def total(self, start: Tensor, chosen: list[int]) -> Tensor:
        """Return the sum of the models of clients that have trained from `start`."""
        found = torch.zeros_like(start)
        for client in chosen:
            train, *_ = self._shares[client]
            self.vector.copy_(start)
            for rows in torch.randperm(len(train)).split(self._workload.batch):
                self._gradient.zero_()
                nn.functional.cross_entropy(self._module(train.x[rows]), train.y[rows]).backward()
                self.vector.sub_(self._gradient, alpha=LR)
            found += self.vector
        return found


class FlatProcesses:
    """The flat loop in several processes of one thread; each averages its part of the clients."""

    def __init__(self, name: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            context.Process(target=_flat, args=(name, theirs), daemon=True).start()
            self._ends.append(ours)
        self.vector = Flat(WORKLOADS[name], []).vector

    def round(self, chosen: list[int]) -> None:
        for place, end in enumerate(self._ends):
            end.send((self.vector.numpy().tobytes(), chosen[place :: len(self._ends)]))
        totals = [torch.frombuffer(bytearray(end.recv_bytes()), dtype=torch.float32) for end in self._ends]
        self.vector = torch.stack(totals).sum(0) / len(chosen)

    def close(self) -> None:
        for end in self._ends:
            end.close()


def _flat(name: str, end: Connection) -> None:
    torch.set_num_threads(1)
    flat = Flat(WORKLOADS[name], WORKLOADS[name].shares())
    try:
        while True:
            start, chosen = end.recv()
            total = flat.total(torch.frombuffer(bytearray(start), dtype=torch.float32), chosen)
            end.send_bytes(total.numpy().tobytes())
    except EOFError:
        return


def measure(name: str, workers: list[int], repeat: int, **training: str) -> dict[str, list[float]]:
    """Return the samples per second of each way in each round; the last of the loops is the base of ratios."""
    workload = WORKLOADS[name]
    shares, model = workload.shares(), workload.module()
    flat, processes = Flat(workload, shares), FlatProcesses(name, max(workers))

    def flat_round(_: int, chosen: list[int]) -> None:
        flat.vector.copy_(flat.total(flat.vector.clone(), chosen) / len(chosen))

    ways: dict[str, Callable[[int, list[int]], None]] = {
        "plain loop": lambda _, chosen: plain_round(workload, model, shares, chosen),
        "flat loop": flat_round,
        base(workers): lambda _, chosen: processes.round(chosen),
    }
    with ExitStack() as stack:
        for engine, make in ENGINES.items():
            for count in (0, *workers):
                network = stack.enter_context(Simulation(partial(build, name, **training), count, engine=make))
                ways[f"fedshare, {engine}, {count or 'no'} workers"] = partial(fedshare_round, network)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round in range(repeat + 1):
            chosen = sample(list(range(workload.clients)), workload.chosen, 0, round)
            for way, run in ways.items():
                began = time.perf_counter()
                run(round + 1, chosen)
                if round:  # the first one warms up
                    rates[way].append(workload.samples / (time.perf_counter() - began))
    processes.close()
    return rates


def base(workers: list[int]) -> str:
    return f"flat loop, {max(workers)} processes"


def show(name: str, rates: dict[str, list[float]], base: str) -> None:
    for way, found in rates.items():
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        ratio = median(found) / median(rates[base])
        print(f"{name:4} {way:30} {median(found):10,.0f} samples/s ({spread:>20})   {ratio:5.2f}x", flush=True)


def show_json(name: str, rates: dict[str, list[float]]) -> None:
    """Print a line for each way, in the form of the peers' scripts."""
    versions = {"fedshare": fedshare.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for way, found in rates.items():
        line = {"way": way, "workload": name, "rate": median(found), "rates": found, "versions": versions}
        print(json.dumps(line), flush=True)


def fedshare_round(network: Simulation, round: int, chosen: list[int]) -> None:
    population = network.population
    state = population.strategy.init(population.scratch.initial, population.clients)
    downloads = {client: population.strategy.download(state, client, Purpose.TRAIN) for client in chosen}
    answers = network.exchange(Purpose.TRAIN, round, downloads).answers  # type: ignore[arg-type]
    population.strategy.aggregate(state, round, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[[], *WORKLOADS], default=[])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous", help="ours only")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="ours only")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each way")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.workloads or WORKLOADS:
        training = {"layout": options.layout, "precision": options.precision}
        rates = measure(name, options.workers, options.repeat, **training)
        if options.json:
            show_json(name, rates)
        else:
            show(name, rates, base(options.workers))


if __name__ == "__main__":
    main()
