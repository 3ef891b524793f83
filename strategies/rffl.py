"""RFFL: clients whose updates agree with the others' earn reputation, and receive more of the common update.

Xu and Lyu, "A Reputation Mechanism Is All You Need: Collaborative Fairness and Adversarial Robustness in Federated
Learning", 2020, arXiv 2011.10464. A reputation is a moving average of the cosine between a client's update and the
reputation-weighted average. The client's half is in `fedshare.strategies.reputation`.
"""

from dataclasses import dataclass

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.reputation import OWN, Scaled, outstanding, shares


@dataclass(frozen=True)
class RFFL(Scaled):
    beta: float = 1 / 3  # clients with less than this share of the mean reputation are removed
    warmup: int = 10  # the first round in which a client may be removed
    own: str = "paper"  # how a client's own update is treated: paper, code or cgsv

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise UserError(f"beta={self.beta}: must be from 0 to 1")
        if self.warmup < 1:
            raise UserError(f"warmup={self.warmup}: must be at least 1")
        if self.own not in OWN:
            raise UserError(f"own={self.own}: must be {', '.join(OWN)}")

    def kept(self, weight: float) -> float:
        return OWN[self.own](weight)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        uploads = {client: uploads[client] for client in sorted(uploads) if client not in state["removed"]}
        if not uploads:
            return state
        average, weights, reputation = self.agreement(state, uploads)
        best = max(reputation, key=lambda client: reputation[client])

        removed = dict(state["removed"])
        if round >= self.warmup:
            least = self.beta / len(reputation)
            removed |= {client: round for client in uploads if reputation[client] < least and client != best}
            reputation = shares({client: r for client, r in reputation.items() if client not in removed})
        most = max(reputation.values())
        news = {
            client: {"round": round, "weight": weights[client], "share": reputation[client] / most}
            for client in uploads
            if client not in removed
        }
        after = {"round": round, "reputation": reputation, "weights": weights, "removed": removed}
        return after | outstanding(state, round, average, news, removed)
