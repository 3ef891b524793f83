"""FedPer: the lower layers are learnt together; the last ones are personal and never leave their client.

Arivazhagan, Aggarwal, Singh and Choudhary, "Federated Learning with Personalization Layers", 2019, arXiv 1912.00818,
section 3. A round is FedAvg's: a client trains base and personalization layers together, and sends the base. The
partition, not the strategy, decides which layers are personal: ``peft=personal_head`` selects the head, and
``peft.local=[...]`` any others.
"""

from dataclasses import dataclass

from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg over a partition whose head is local."""
