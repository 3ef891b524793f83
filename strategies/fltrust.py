"""FLTrust: one participant is trusted, and others are weighted by the cosine of their updates with its own.

Cao, Fang, Liu and Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021, arXiv
2012.13995, algorithm 2.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.rules.matrix import lengths, moved, products, updates_of, weighted
from fedshare.state import State
from fedshare.strategies.robust import Guarded


@dataclass(frozen=True)
class FLTrust(Guarded):
    """The paper's server has a small root data set; here it is the examples of one participant, the root.

    As in the paper, other updates are compared with the root's, which is not part of the average. If the root is
    absent, or no client is trusted, the model does not change.
    """

    root: int = 0  # the id of the client whose examples are trusted
    alpha: float = 1.0  # step size along the average, the paper's global learning rate

    def __post_init__(self) -> None:
        if self.root < 0:
            raise UserError(f"root={self.root}: must be at least 0")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"alpha={self.alpha}: must be above 0")

    def weakness(self, clients: Collection[int]) -> str | None:
        found = f"the root, client {self.root}, is not among the clients: the model stays as it is"
        return None if self.root in clients else found

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        if self.root not in uploads:
            return state | {"weights": {}}
        clients = [self.root, *sorted(uploads.keys() - {self.root})]
        updates = updates_of([uploads[client].tensors["params"] for client in clients], state["params"])
        norms = lengths(updates, torch.zeros_like(updates[0]))
        towards = products(updates, updates[:1]).flatten()

        # The trust in a client is the cosine of its update with the root's, clipped at 0.
        trust = (towards / (norms * norms[0])).nan_to_num(0).clamp(min=0)
        trust[0] = 0
        if not trust.any():
            return state | {"weights": dict.fromkeys(sorted(clients), 0.0)}
        # The average by trust of the updates, each rescaled to the norm of the root's.
        shares = trust / trust.sum()
        scales = torch.where(shares > 0, shares * norms[0] / norms, 0)
        return {
            "params": moved(state["params"], self.alpha * weighted(updates, scales)),
            "weights": dict(sorted(zip(clients, shares.tolist(), strict=True))),
        }
