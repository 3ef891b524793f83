"""FoolsGold: clients whose updates are too similar over time are presumed to be sybils, and lose their weight.

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

_SAME = 1e-12  # one minus the cosine of two equal vectors, up to rounding
_FIRST = 0.99  # weight, before the logit, of the client least similar to others; the logit of 1 is infinite


@dataclass(frozen=True)
class FoolsGold(Guarded):
    """Assumes that honest clients' data differ and that adversaries share a goal: a single adversary is not detected.

    All clients that ever took part are compared, by all coordinates equally (the paper's optional feature weights are
    those of one layer). The paper adds up the weighted updates, which suits gradient steps; here they are averaged. If
    all participants of a round have weight 0, the model does not change.
    """

    kappa: float = 1.0  # how sharply weights separate into 0 and 1: the paper's confidence

    def __post_init__(self) -> None:
        if not 0 < self.kappa < math.inf:
            raise UserError(f"kappa={self.kappa}: must be above 0")

    def init(self, params: Tensors, clients: int) -> State:
        return super().init(params, clients) | {"histories": {}}

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        clients = sorted(uploads)
        updates = updates_of([uploads[client].tensors["params"] for client in clients], state["params"])
        histories = dict(state["histories"])
        for client, update in zip(clients, updates.double(), strict=True):  # a sum of float32 may overflow
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
    """Return the cosine of each pair of rows; 0 with a row of zeros."""
    inner = products(histories, histories)
    norms = inner.diagonal().sqrt()
    return (inner / norms.outer(norms)).nan_to_num(0)


def distinctness(cosines: Tensor, kappa: float) -> Tensor:
    """Return a score from 0, for a client similar to another, to 1: the algorithm's pardoning and logit."""
    likeness = cosines.clone().fill_diagonal_(0)
    most = likeness.max(dim=1).values
    # Pardoning: a client that is similar to one with an even more similar neighbour counts as less similar.
    likeness = torch.where(most[:, None] < most, likeness * most[:, None] / most, likeness)
    alpha = (1 - likeness.max(dim=1).values).clamp(0, 1)
    alpha[alpha < _SAME] = 0
    if not alpha.any():
        return alpha
    alpha = alpha / alpha.max()
    alpha[alpha == 1] = _FIRST
    return (kappa * (alpha.logit() + 0.5)).clamp(0, 1)
