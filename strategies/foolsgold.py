"""FoolsGold: clients whose updates are too much alike over time are one adversary's, and lose their weight.

Fung, Yoon and Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020 (arXiv 1808.04866,
"Mitigating Sybils in Federated Learning Poisoning"), algorithm 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.rules.matrix import moved, products, updates_of, weighted
from fedshare.state import State
from fedshare.strategies.robust import Guarded
from fedshare.tensors import Tensors

_SAME = 1e-12  # one less the cosine of two vectors that are one, give or take a rounding
_FIRST = 0.99  # the weight, before the logit, of the client that is least like any other; the logit of 1 is endless


@dataclass(frozen=True)
class FoolsGold(Guarded):
    """It supposes that honest clients' data differ, and that adversaries want the same: one alone goes unseen.

    Everybody who ever took part is compared, by all coordinates alike (the paper's weights of features, which are
    optional, are those of one layer). The paper adds the weighted updates up, which suits steps of gradients; here they
    are averaged. Where all weights of those present are 0, the model stays as it is.
    """

    kappa: float = 1.0  # how sharply weights part into 0 and 1: the paper's confidence

    def __post_init__(self) -> None:
        if not 0 < self.kappa < math.inf:
            raise UserError(f"kappa={self.kappa}: must be above 0")

    def init(self, params: Tensors, clients: int) -> State:
        return super().init(params, clients) | {"histories": {}}

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        clients = sorted(uploads)
        updates = updates_of([uploads[client].tensors["params"] for client in clients], state["params"])
        histories = dict(state["histories"])
        for client, update in zip(clients, updates.double(), strict=True):  # a sum of float32 may be endless
            histories[client] = histories[client] + update if client in histories else update.clone()
        histories = dict(sorted(histories.items()))

        everyone = distinctness(cosines(torch.stack(list(histories.values()))), self.kappa)
        known = dict(zip(histories, everyone.tolist(), strict=True))
        weights = torch.tensor([known[client] for client in clients], dtype=torch.float64)
        shares = weights / weights.sum() if weights.any() else weights
        return {
            "params": moved(state["params"], weighted(updates, shares)),
            "weights": dict(zip(clients, shares.tolist(), strict=True)),
            "histories": histories,
        }


def cosines(histories: Tensor) -> Tensor:
    """Between any two rows; 0 with a row of zeros."""
    inner = products(histories, histories)
    norms = inner.diagonal().sqrt()
    return (inner / norms.outer(norms)).nan_to_num(0)


def distinctness(cosines: Tensor, kappa: float) -> Tensor:
    """From 0, for one that is like another, to 1: the algorithm's pardon and logit."""
    likeness = cosines.clone().fill_diagonal_(0)
    most = likeness.max(dim=1).values
    # Pardon: who is like a client that is itself more like others is honest by comparison.
    likeness = torch.where(most[:, None] < most, likeness * most[:, None] / most, likeness)
    alpha = (1 - likeness.max(dim=1).values).clamp(0, 1)
    alpha[alpha < _SAME] = 0
    if not alpha.any():
        return alpha
    alpha = alpha / alpha.max()
    alpha[alpha == 1] = _FIRST
    return (kappa * (alpha.logit() + 0.5)).clamp(0, 1)
