"""What RFFL, RFFL+ and CGSV have in common: a client receives as much of the common update as it has reputation.

Nobody gets a global model: all train models of their own, and what they get is a reward. How reputation is earned is
`aggregate`, and each paper's own.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.forms import Form, masks, sparse
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors, add, cosine, mean, norm, subtract, zeros_like

# What becomes of a client's own update, by its weight in the average: how much of it stays in the client's model.
OWN: dict[str, Callable[[float], float]] = {
    "paper": lambda weight: 1 - weight,  # it stays, and its part of the average is taken out of the reward
    "code": lambda weight: 1.0,  # the released code's: it stays in both
    "cgsv": lambda weight: 0.0,  # the authors' later method: the reward takes its place
}


@dataclass(frozen=True)
class Reputation(Strategy):
    """A client that is absent from a round keeps its reward. A client that is removed is asked for no more updates."""

    alpha: float = 0.95  # how much of its old reputation a client keeps each round; 1: weights stay those of round 1

    form: ClassVar[Form] = sparse.Sparse("update")  # of an embedding, only the words that a client has change
    reports: ClassVar[dict[str, str]] = {
        "reputation": "of each client",
        "weights": "each client's share in the round's average",
        "removed": "the round since which a client is excluded",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha}: must be from 0 to 1")

    def init(self, params: Tensors, clients: int) -> State:
        return {
            "updates": {0: zeros_like(params)},
            "round": 0,
            "reputation": {},
            "weights": {},
            "earned": {},
            "removed": {},
        }

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        """The largest entries of the average update, as many of each tensor as the client has earned."""
        if client_id in state["removed"]:  # it is tested with the model that it has
            return None if purpose is Purpose.TRAIN else Payload()
        earned = state["earned"].get(client_id)
        if earned is None:
            return Payload()
        update = state["updates"][earned["round"]]
        return Payload(reward(update, earned["share"]), {"round": earned["round"], "weight": earned["weight"]})

    def apply(self, client: Client, download: Payload) -> None:
        params = client.state.get("params", client.initial)
        own = client.state.get("update")
        # A reward is for one update: where the client's last one did not arrive, it goes on with that alone.
        if own is not None and download.metrics.get("round") != client.state["round"]:
            params = add(params, own)
        elif own is not None:
            earned = without(client.buffers, sparse.decode(download.tensors, own))  # nobody honest sends those
            params = add(add(params, own, alpha=self.kept(download.metrics["weight"])), earned)
        client.load(params)

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before = client.params()
        metrics = client.fit(round)
        after = client.params()
        update = self.scaled(without(client.buffers, subtract(after, before)))
        # Running statistics are the client's own.
        start = {name: after[name] if name in client.buffers else before[name] for name in before}
        if all(bool(tensor.isfinite().all()) for tensor in after.values()):  # or it would never find back
            client.state |= {"params": start, "update": update, "round": round}
        return Payload({"update": update}, metrics)

    @abstractmethod
    def kept(self, weight: float) -> float:
        """How much of its own update, which had this weight in the average, a client keeps beside its reward."""

    @abstractmethod
    def scaled(self, update: Tensors) -> Tensors:
        """An update as it is uploaded."""

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"update": state["updates"][state["round"]]}

    def report(self, state: State) -> dict[str, Any]:
        names = ("reputation", "weights", "removed")
        return {name: {str(client): value for client, value in state[name].items()} for name in names}


@dataclass(frozen=True)
class Scaled(Reputation):
    """RFFL's and CGSV's reputation: from the cosine with the average by reputation. All reputations together are 1.

    The reputation of an absent client shrinks as that of the others grows. A new client enters with the mean.
    """

    gamma: float = 0.5  # the norm to which every update is scaled

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise UserError(f"gamma={self.gamma}: must be above 0")

    def scaled(self, update: Tensors) -> Tensors:
        length = norm(update)
        if not length > 0:
            return update
        # In float64: the factor of an update that is almost nothing is beyond float32.
        factor = self.gamma / length
        return {name: (tensor.double() * factor).to(tensor.dtype) for name, tensor in update.items()}

    def agreement(
        self, state: State, uploads: dict[int, Payload]
    ) -> tuple[Tensors, dict[int, float], dict[int, float]]:
        """The average by reputation, the weights that it was made with, and the reputations after this round."""
        updates = {client: self.scaled(upload.tensors["update"]) for client, upload in uploads.items()}
        reputation = admitted(state["reputation"], {c: upload.metrics["examples"] for c, upload in uploads.items()})
        weights = shares({client: reputation[client] for client in updates})
        average = mean(list(updates.values()), list(weights.values()))
        for client, update in updates.items():
            agreed = cosine(update, average)
            reputation[client] = max(0.0, self.alpha * reputation[client] + (1 - self.alpha) * agreed)
        return average, weights, shares(reputation)


def admitted(reputation: dict[int, float], examples: dict[int, float]) -> dict[int, float]:
    """With those who are new: in the first round by their share of the examples, later with the mean reputation."""
    if not reputation:
        return shares(examples)
    entry = sum(reputation.values()) / len(reputation)
    return shares(dict(sorted((dict.fromkeys(examples, entry) | reputation).items())))


def outstanding(
    state: State, round: int, average: Tensors, news: dict[int, dict[str, float]], removed: dict[int, int]
) -> State:
    """What everyone who is left has earned, by the last round they took part in, and the averages it is part of."""
    earned = {client: e for client, e in sorted((state["earned"] | news).items()) if client not in removed}
    held = {e["round"] for e in earned.values()} | {round}
    updates = {r: update for r, update in (state["updates"] | {round: average}).items() if r in held}
    return {"updates": updates, "earned": earned}


def shares(values: dict[int, float]) -> dict[int, float]:
    """Each value's part of the sum; where all are 0, equal parts."""
    total = math.fsum(values.values())
    return {client: value / total if total > 0 else 1 / len(values) for client, value in values.items()}


def reward(update: Tensors, share: float) -> dict[str, Tensors]:
    """Of each tensor the ``ceil(share * size)`` largest entries by magnitude; of equal ones those that come first."""
    kept: dict[str, Tensor] = {
        name: masks.top(tensor.abs(), math.ceil(share * tensor.numel())) for name, tensor in update.items()
    }
    return sparse.encode(update, kept)


def without(names: frozenset[str], tensors: Tensors) -> Tensors:
    """`tensors`, with zeros in place of `names`."""
    return {name: torch.zeros_like(tensor) if name in names else tensor for name, tensor in tensors.items()}
