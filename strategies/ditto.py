"""Ditto: besides the global model, each client trains a personal one, regularised towards the global one.

Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv
2012.04221, algorithm 1. The global model is FedAvg's; personal models never leave their clients. ``lam`` is the
paper's lambda: at 0 the personal model is trained independently.
"""

import math
from dataclasses import dataclass

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, plus a personal model that each client stores, and that it is tested with as soon as it exists.

    It starts as the first global model that the client receives. If the partition has a local part, each of the two
    models has its own; the personal model's is not regularised.
    """

    lam: float = 1.0  # strength of the pull towards the global model; 0: none
    personal_epochs: int | None = None  # local epochs of the personal model; None: client.epochs

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
            metrics["max_epsilon"] = spent["max_epsilon"]  # of both fits together
        return Payload({"params": upload}, metrics)

    def evaluate(self, client: Client, round: int) -> Payload:
        if "personal" in client.state:
            client.load(client.state["personal"])
        return client.evaluate()
