"""FedPEFT: the backbone is present on all clients and frozen; only the few tensors that fine-tune it are sent.

Sun et al., "Conquering the Communication Constraints to Enable Large Pre-Trained Models in Federated Learning", 2022,
arXiv 2210.01708, section 3. A round is FedAvg's: the server sends phi, a client trains it with a fresh optimizer, the
server averages the results by numbers of examples. The partition, not the strategy, decides what is phi (shared) and
what is theta (frozen, never sent): ``peft=...`` makes it (`fedshare.peft`), for every strategy alike.
"""

from dataclasses import dataclass

from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedPEFT(FedAvg):
    """FedAvg over a partition of the parameters."""
