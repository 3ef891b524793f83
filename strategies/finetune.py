"""FedAvg with fine-tuning: before each test, each client fine-tunes the global model on its own examples.

Cheng, Chadha and Duchi, "Fine-tuning in Federated Learning: a simple but tough-to-beat baseline", 2021, arXiv
2108.07313, where it is FTFA; earlier, Yu, Bagdasaryan and Shmatikov, "Salvaging Federated Learning by Local
Adaptation", 2020, arXiv 2002.04758.
"""

from dataclasses import dataclass

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FineTune(FedAvg):
    """FedAvg whose model is fine-tuned for each test; the fine-tuned models are discarded.

    With differential privacy, fine-tuning is noisy as well. A deployment's privacy ledger counts its steps; in a
    simulation, epsilon is computed from the clients' memories and covers the training only.
    """

    finetune_epochs: int = 5  # local epochs before each test

    def __post_init__(self) -> None:
        if self.finetune_epochs < 0:
            raise UserError(f"finetune_epochs must be at least 0, not {self.finetune_epochs}")

    def evaluate(self, client: Client, round: int) -> Payload:
        client.fit(round, epochs=self.finetune_epochs)
        return client.evaluate()
