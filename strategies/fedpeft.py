"""FedPEFT: the backbone is everywhere already and stays as it is; only the few tensors that fine-tune it travel.

Sun et al., "Conquering the Communication Constraints to Enable Large Pre-Trained Models in Federated Learning", 2022,
arXiv 2210.01708, section 3. A round is FedAvg's: the server sends phi, a client trains it with a fresh optimizer, the
server averages what comes back by numbers of examples. What is phi (shared) and what theta (frozen, in no message) is
not the strategy's affair but the partition's, which ``peft=...`` makes (`fedshare.peft`), for every strategy alike.
"""

from dataclasses import dataclass

from fedshare.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedPEFT(FedAvg):
    """FedAvg, over a partition of the parameters."""
