"""The Flower app that Ray's actors import: a client as in Flower's quickstart for PyTorch."""

import os
from functools import cache
from pathlib import Path

import models
import torch
from arrays import LR, WORKLOADS, read
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, TensorDataset

FOLDER, NAME = "PEERS_FOLDER", "PEERS_WORKLOAD"  # in the environment

app = ClientApp()


@cache
def arrays() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all clients' data, read once in each actor."""
    x, y = read(Path(os.environ[FOLDER]), os.environ[NAME])
    return torch.from_numpy(x), torch.from_numpy(y)


@app.train()
def train(message: Message, context: Context) -> Message:
    model = models.make(os.environ[NAME])
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    x, y = arrays()
    client = int(context.node_config["partition-id"])
    examples = TensorDataset(x[client], y[client])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.train()
    for inputs, labels in DataLoader(examples, batch_size=WORKLOADS[os.environ[NAME]].batch, shuffle=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(examples)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
