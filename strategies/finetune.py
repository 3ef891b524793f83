"""FedAvg with fine-tuning: before a test each client trains the global model a little on its own examples.

Cheng, Chadha and Duchi, "Fine-tuning in Federated Learning: a simple but tough-to-beat baseline", 2021, arXiv
2108.07313, there FTFA; before them Yu, Bagdasaryan and Shmatikov, "Salvaging Federated Learning by Local Adaptation",
2020, arXiv 2002.04758.
"""

from dataclasses import dataclass

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FineTune(FedAvg):
    """FedAvg, whose model is fine-tuned for each test; nobody keeps what comes of it.

    With differential privacy the fine-tuning has noise, too. A deployment's ledger counts its steps; a simulation's
    epsilon, which goes by what clients remember, is of the training alone.
    """

    finetune_epochs: int = 5  # passes over a client's examples before each test

    def __post_init__(self) -> None:
        if self.finetune_epochs < 0:
            raise UserError(f"finetune_epochs must be at least 0, not {self.finetune_epochs}")

    def evaluate(self, client: Client, round: int) -> Payload:
        client.fit(round, epochs=self.finetune_epochs)
        return client.evaluate()
