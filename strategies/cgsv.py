"""CGSV: RFFL's successor, in which nobody is removed and little reputation earns more than its share.

Xu, Lyu, Ma, Miao, Foo and Low, "Gradient Driven Rewards to Guarantee Fairness in Collaborative Machine Learning",
NeurIPS 2021. The cosine with the average stands for a client's Shapley value.
"""

import math
import sys
from dataclasses import dataclass
from typing import ClassVar

from fedshare.errors import UserError
from fedshare.strategies.rffl import RFFL


@dataclass(frozen=True)
class CGSV(RFFL):
    """RFFL, except that the reward takes the place of a client's own update, and goes by the tanh of reputation.

    As in RFFL reputations begin with the shares of the examples; in the authors' code, with 0.
    """

    beta: float = 1.0  # altruism: the larger, the more alike are the rewards
    warmup: ClassVar[int] = sys.maxsize
    own: ClassVar[str] = "cgsv"

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UserError(f"beta={self.beta}: must be above 0")
        RFFL(self.gamma, self.alpha)  # says what is wrong with those

    def rewards(self, reputation: dict[int, float]) -> dict[int, float]:
        return super().rewards({client: math.tanh(self.beta * r) for client, r in reputation.items()})
