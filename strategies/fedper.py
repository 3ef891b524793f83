"""FedPer: the lower layers are learnt together, the last ones are each client's own and never leave it.

Arivazhagan, Aggarwal, Singh and Choudhary, "Federated Learning with Personalization Layers", 2019, arXiv 1912.00818,
section 3. A round is FedAvg's: a client trains base and personalization layers together, and sends the base. Which
layers are personal is not the strategy's affair but the partition's: ``peft=personal_head`` says the head, and
``peft.local=[...]`` says others.
"""

from dataclasses import dataclass

from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg, over a partition whose head is local."""
