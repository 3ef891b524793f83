"""The rounds of `gpu.py` in Flower's simulation: a module of its own, which Flower's actors import."""

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from rounds import WORKLOADS, Workload, sgd
from torch import Tensor, nn

from fedshare.population import Part


def flower(workload: Workload, device: str, repeat: int) -> list[float]:
    """Return the seconds between the ends of rounds, after the first. Raises RuntimeError if a client fails."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, client, ends = ServerApp(), ClientApp(), list[float]()

    class Timed(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            answers = list(replies)
            if failed := [answer for answer in answers if answer.has_error()]:
                raise RuntimeError(f"{len(failed)} of Flower's clients failed: {failed[0].error}")
            found = super().aggregate_train(server_round, answers)
            ends.append(time.perf_counter())
            return found

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_evaluate=0.0, min_train_nodes=workload.clients, min_available_nodes=workload.clients)
        strategy.start(grid, ArrayRecord(workload.module().state_dict()), repeat + 1)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        state: Any = message.content["arrays"]
        number = int(context.node_config["partition-id"])
        sent, count = trained(workload, device, number, state.to_torch_state_dict())
        records: Any = {"arrays": ArrayRecord(sent), "metrics": MetricRecord({"num-examples": count})}
        return Message(RecordDict(records), reply_to=message)

    one_actor = {"num_cpus": 2, "num_gpus": float(device != "cpu")}
    run_simulation(server, client, workload.clients, backend_config={"client_resources": one_actor})  # type: ignore[dict-item]
    return [after - before for before, after in pairwise(ends)]


@cache
def shares(clients: int, examples: int) -> list[Part]:
    return replace(WORKLOADS["W2c"], clients=clients, examples=examples).shares()


def trained(workload: Workload, device: str, number: int, state: "OrderedDict[str, Tensor]") -> tuple[Any, int]:
    """Train as Flower's quickstart for PyTorch does: a model, a loader of shuffled batches and an optimizer."""
    model = workload.module()
    model.load_state_dict(state)
    model.to(device).train()
    train = shares(workload.clients, workload.examples)[number].train
    data = torch.utils.data.TensorDataset(train.single, train.y)
    optimizer = sgd(model.parameters())
    for inputs, targets in torch.utils.data.DataLoader(data, batch_size=workload.batch, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.to(device)), targets.to(device)).backward()
        optimizer.step()
    return model.cpu().state_dict(), len(data)
