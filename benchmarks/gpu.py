"""Samples per second of a FedAvg round of many small CNNs on one GPU: all at once, one after another, and in Flower.

    python benchmarks/gpu.py [--device cuda] [--clients 50] [--examples 600] [--batch 10] [--repeat 5]

The model is McMahan et al.'s CNN without padding on images of 28 x 28 (582,026 parameters); the data are noise, so
nothing is learned. Ways of fedshare alternate; medians are printed. A round is a whole one: downloads, training of all
clients for one epoch, uploads, and their mean. Flower's simulation runs last, if Ray is installed: by its defaults, but
with one actor that has the GPU, and its own FedAvg. On an H200, all of this should take a few minutes; `--no-flower`
leaves Flower out. Try it anywhere with `--device cpu --clients 3 --examples 20 --repeat 1`.
"""

import argparse
import importlib.util
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from statistics import median

import torch
from rounds import WORKLOADS, Workload, fedshare_round, sgd
from torch import nn

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


def flower(setting: Setting) -> list[float]:
    """Return the seconds between the ends of Flower's rounds, after the first."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg as FlowersFedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, client, ends = ServerApp(), ClientApp(), list[float]()

    class Timed(FlowersFedAvg):
        def aggregate_train(self, *given: object) -> object:  # type: ignore[override]
            found = super().aggregate_train(*given)  # type: ignore[arg-type]
            ends.append(time.perf_counter())
            return found

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_evaluate=0.0, min_train_nodes=setting.workload.clients)
        strategy.start(grid, ArrayRecord(setting.workload.module().state_dict()), setting.repeat + 1)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        state = message.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
        sent, count = trained(setting, int(context.node_config["partition-id"]), state)
        records = {"arrays": ArrayRecord(sent), "metrics": MetricRecord({"num-examples": count})}  # type: ignore[dict-item]
        return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]

    gpus = float(setting.device != "cpu")
    one_actor = {"num_cpus": torch.get_num_threads() if gpus == 0 else 2, "num_gpus": gpus}
    run_simulation(server, client, setting.workload.clients, backend_config={"client_resources": one_actor})
    return [after - before for before, after in pairwise(ends)]


@cache
def parts(workload: Workload) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(share.train.single, share.train.y) for share in workload.shares()]


def trained(
    setting: Setting, number: int, state: "OrderedDict[str, torch.Tensor]"
) -> tuple[dict[str, torch.Tensor], int]:
    """Train as Flower's quickstart for PyTorch does: a model, a loader of shuffled batches and an optimizer."""
    model = setting.workload.module()
    model.load_state_dict(state)
    model.to(setting.device).train()
    data = torch.utils.data.TensorDataset(*parts(setting.workload)[number])
    optimizer = sgd(model.parameters())
    for inputs, targets in torch.utils.data.DataLoader(data, batch_size=setting.workload.batch, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.to(setting.device)), targets.to(setting.device)).backward()
        optimizer.step()
    return model.cpu().state_dict(), len(data)


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
        show(setting, {FLOWER: flower(setting)}, median(seconds[AT_ONCE]))


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
