"""A strategy that sends back what it receives, and clients for it: the overhead of fedshare, without any learning."""

import torch
from torch import nn

from fedshare.client import Client, Training
from fedshare.data.dataset import Examples
from fedshare.payload import Payload
from fedshare.simulation import Part, Population
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors
from fedshare.training.scratch import Scratch


class One(nn.Module):
    """A model with a single parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Echo(Strategy):
    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload:
        return Payload({"params": state["params"]})

    def apply(self, client: Client, download: Payload) -> None:
        pass

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        return download

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        return state


def population(clients: int) -> Population:
    one = Examples(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    training = Training(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    return Population(Echo(), Scratch(One()), training, [Part(one, one)] * clients, 0)


def payload(size: int, tensors: int = 1) -> Payload:
    """Return `size` bytes in total as `tensors` tensors of float32; almost nothing if `size` is 0."""
    if size == 0:
        return Payload(metrics={"step": 1.0})
    values = torch.ones(size // tensors // 4)
    return Payload({"params": {f"layer.{i}": values.clone() for i in range(tensors)}})
