"""Ditto: beside the global model each client trains a personal one, which is held near the global one.

Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv
2012.04221, algorithm 1. The global model is FedAvg's, and no personal model leaves its client. How near is ``lam``, the
paper's lambda: at 0 a client trains its model alone.
"""

import math
from dataclasses import dataclass

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and a personal model that each client remembers, and is tested with once it has one.

    It begins as the first global model that the client gets. Where the partition has a local part, each of the two
    models has one of its own; the personal model's is pulled by nothing.
    """

    lam: float = 1.0  # how strongly the personal model is pulled towards the global one; 0: not at all
    personal_epochs: int | None = None  # passes over a client's examples for the personal model; None: client.epochs

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise UserError(f"lam must be at least 0 and finite, not {self.lam}")
        if self.personal_epochs is not None and self.personal_epochs < 1:
            raise UserError(f"personal_epochs must be at least 1, not {self.personal_epochs}")

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        sent = client.params()
        whole = [*sent, *client.local]
        personal = client.state.get("personal") or client.params(whole)
        metrics = client.fit(round)
        upload = client.params()

        client.load(personal)
        epochs = self.personal_epochs
        spent = client.fit(round, epochs=epochs, toward=sent, pull=self.lam, keep_local=False)
        client.state["personal"] = client.params(whole)
        if "max_epsilon" in spent:
            metrics["max_epsilon"] = spent["max_epsilon"]  # of both fits
        return Payload({"params": upload}, metrics)

    def evaluate(self, client: Client, round: int) -> Payload:
        if "personal" in client.state:
            client.load(client.state["personal"])
        return client.evaluate()
