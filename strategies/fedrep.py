"""FedRep: a client first fits its own head to the shared body, then the body to that head.

Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, arXiv 2102.07078, algorithm 1. The head is the local part of the partition, the body (the paper's representation)
the shared one: ``peft=personal_head``. Running statistics change in both fits; frozen tensors in neither.
"""

from dataclasses import dataclass

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedRep(FedAvg):
    """FedAvg that trains the head and the body one after the other. Without a local head it equals FedAvg."""

    head_epochs: int = 10  # local epochs of the head; the body has client.epochs

    def __post_init__(self) -> None:
        if self.head_epochs < 1:
            raise UserError(f"head_epochs must be at least 1, not {self.head_epochs}")

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        head, body = client.parameters.intersection(client.local), client.parameters.intersection(client.initial)
        metrics = client.fit(round, head, epochs=self.head_epochs) if head else {}
        metrics = client.fit(round, body) if body else metrics
        return Payload({"params": client.params()}, metrics)
