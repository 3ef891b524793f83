"""q-FFL: clients with a high loss weigh more, so that the model becomes similarly good for all clients.

Li, Sanjabi, Beirami and Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv 1905.10497, algorithm
2 (q-FedAvg). With q = 0 it is the unweighted mean of the models; as q grows, the largest loss dominates.
"""

import math
from dataclasses import dataclass

import torch

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.rules.matrix import lengths, moved, updates_of, weighted
from fedshare.state import State
from fedshare.strategies.robust import Guarded

_LEAST = 1e-10  # smaller losses are raised to this, so that all powers are finite


@dataclass(frozen=True)
class QFFL(Guarded):
    """The step of the model depends on `lr`, which must be close to the clients' learning rate.

    A client that reports too high a loss gets too much weight: this is fairness, not a defence.
    """

    q: float = 1.0  # weight of high losses: the objective is the mean of their powers q + 1
    lr: float = 0.05  # the clients' learning rate, client.optimizer.lr: the paper's L is 1 / lr

    def __post_init__(self) -> None:
        if not 0 <= self.q < math.inf:
            raise UserError(f"q={self.q}: must be at least 0")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr={self.lr}: must be above 0")

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before = loss(client)
        upload = super().train(client, round, download)
        return Payload(upload.tensors, upload.metrics | {"loss_before": before})

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        clients = sorted(uploads)
        updates = updates_of([uploads[client].tensors["params"] for client in clients], state["params"])
        told = [uploads[client].metrics.get("loss_before", 0.0) for client in clients]
        losses = torch.tensor(told, dtype=torch.float64).clamp(min=_LEAST)
        # Division by the largest, which cancels out, prevents overflow of the powers.
        highest = losses.max()
        ratios = losses / highest
        powers = ratios**self.q

        lipschitz = 1 / self.lr
        squares = (lipschitz * lengths(updates, torch.zeros_like(updates[0]))) ** 2
        curvature = self.q * powers / losses * squares + lipschitz * powers
        return {
            "params": moved(state["params"], weighted(updates, lipschitz * powers / curvature.sum())),
            "weights": dict(zip(clients, (powers / powers.sum()).tolist(), strict=True)),
        }


def loss(client: Client) -> float:
    """Return the loss of the current model over the client's examples. Raises UserError if training is private."""
    if client.training.private:
        raise UserError("client.privacy: protects what `fit` makes of the examples, and q-FFL tells their loss without")
    return client.loss_over(client.train_examples)
