"""CGSV: RFFL's successor, without removal, and with rewards that favour small reputations.

Xu, Lyu, Ma, Miao, Foo and Low, "Gradient Driven Rewards to Guarantee Fairness in Collaborative Machine Learning",
NeurIPS 2021. The cosine with the average approximates a client's Shapley value.
"""

import math
from dataclasses import dataclass

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.reputation import OWN, Scaled, outstanding


@dataclass(frozen=True)
class CGSV(Scaled):
    """The reward replaces a client's own update, and is proportional to the tanh of its reputation.

    As in RFFL, reputations start as the shares of the examples; in the authors' code, as 0.
    """

    beta: float = 1.0  # altruism: the larger, the more similar the rewards

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise UserError(f"beta={self.beta}: must be above 0")

    def kept(self, weight: float) -> float:
        return OWN["cgsv"](weight)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        uploads = dict(sorted(uploads.items()))
        average, weights, reputation = self.agreement(state, uploads)
        earned = {client: math.tanh(self.beta * r) for client, r in reputation.items()}
        most = max(earned.values())
        news = {c: {"round": round, "weight": weights[c], "share": earned[c] / most} for c in uploads}
        after = {"round": round, "reputation": reputation, "weights": weights, "removed": {}}
        return after | outstanding(state, round, average, news, {})
