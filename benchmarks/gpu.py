"""Samples per second of a FedAvg round of many small CNNs on one GPU: all at once, one after another, and in Flower.

    python benchmarks/gpu.py [--device cuda] [--clients 50] [--examples 600] [--batch 10] [--repeat 5]

The model is McMahan et al.'s CNN without padding on images of 28 x 28 (582,026 parameters); the data are noise, so
nothing is learned. Ways of fedshare alternate; medians are printed. A round is a whole one: downloads, training of all
clients for one epoch, uploads, and their mean. Flower's simulation runs last, if Ray is installed: by its defaults, but
with one actor that has the GPU, and its own FedAvg. `--no-flower` leaves it out. All of it is meant to take less than 8
minutes on a GPU, and has not run on one yet. Try it anywhere, without Ray:

    python benchmarks/gpu.py --device cpu --clients 3 --examples 20 --repeat 1
"""

import argparse
import importlib.util
import time
from dataclasses import dataclass, replace
from statistics import median

import torch
from rounds import WORKLOADS, Workload, fedshare_round, sgd

from fedshare.client import Training
from fedshare.engine.batched import Batched, group_size
from fedshare.engine.single import Make, Single
from fedshare.simulation import Population, Simulation
from fedshare.strategies.fedavg import FedAvg
from fedshare.training.scratch import Scratch

AT_ONCE, ALONE, FLOWER = "batched", "plain", "Flower, 1 actor"
ENGINES: dict[str, Make] = {AT_ONCE: Batched, ALONE: Single}


@dataclass(frozen=True)
class Setting:
    workload: Workload
    device: str
    repeat: int

    def build(self) -> Population:
        training = Training(optimizer=sgd, epochs=1, batch_size=self.workload.batch)
        scratch = Scratch(self.workload.module(), self.device)
        return Population(FedAvg(), scratch, training, self.workload.shares(), 0)

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.accelerator.synchronize()


def ours(setting: Setting) -> dict[str, list[float]]:
    """Return the seconds of the rounds of each way, which take turns."""
    networks = {name: Simulation(setting.build, engine=make) for name, make in ENGINES.items()}
    print(f"clients at once: {min(setting.workload.clients, group_size(networks[AT_ONCE].population.scratch))}")
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    for round in range(setting.repeat + 1):  # the first one traces, captures and warms up
        for name, network in networks.items():
            setting.synchronize()
            began = time.perf_counter()
            fedshare_round(network, round + 1, network.client_ids())
            setting.synchronize()
            seconds[name].append(time.perf_counter() - began)
    for reason in networks[AT_ONCE].reasons:
        print(f"not batched: {reason}")
    print("first rounds: " + ", ".join(f"{name} {times[0]:.1f} s" for name, times in seconds.items()))
    return {name: times[1:] for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--examples", type=int, default=600, help="of each client")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5, help="rounds to take the median of")
    parser.add_argument("--no-flower", action="store_true")
    options = parser.parse_args()
    counts = {"clients": options.clients, "chosen": options.clients, "examples": options.examples}
    setting = Setting(replace(WORKLOADS["W2c"], **counts, batch=options.batch), options.device, options.repeat)
    torch.set_num_threads(1)
    named = "CPU" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    print(f"{named}; torch {torch.__version__}; {options.clients} clients of {options.examples}, batch {options.batch}")
    seconds = ours(setting)
    show(setting, seconds)
    if options.no_flower or not importlib.util.find_spec("ray"):
        print("without Flower's simulation" + ("" if options.no_flower else ": Ray is not installed"))
    else:
        from gpu_flower import flower

        show(setting, {FLOWER: flower(setting.workload, setting.device, setting.repeat)}, median(seconds[AT_ONCE]))


def show(setting: Setting, seconds: dict[str, list[float]], base: float | None = None) -> None:
    """Print the rate of each way, and how many times as fast batching is, which took `base`."""
    samples = setting.workload.clients * setting.workload.examples
    base = base or median(seconds[AT_ONCE])
    for name, times in seconds.items():
        spread = f"{samples / max(times):,.0f} to {samples / min(times):,.0f}"
        ratio = f"batched is {median(times) / base:.1f}x" if name != AT_ONCE else ""
        print(f"{name:16} {samples / median(times):10,.0f} samples/s ({spread:>20})  {ratio}", flush=True)


if __name__ == "__main__":
    main()
