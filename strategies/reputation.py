"""The base of RFFL, RFFL+ and CGSV: a client receives a share of the common update according to its reputation.

There is no global model: all clients train their own, and receive rewards. How reputation is earned is specific to
each paper, and defined in `aggregate`.
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
from fedshare.tensors import Tensors, add, cosines, mean, norm, subtract, zeros_like

# How much of a client's own update stays in its model, by the update's weight in the average.
OWN: dict[str, Callable[[float], float]] = {
    "paper": lambda weight: 1 - weight,  # it stays, and its part of the average is subtracted from the reward
    "code": lambda weight: 1.0,  # the released code's: it stays in both
    "cgsv": lambda weight: 0.0,  # the authors' later method: the reward replaces it
}


@dataclass(frozen=True)
class Reputation(Strategy):
    """A client that is absent from a round keeps its reward. A client that is removed is asked for no more updates."""

    alpha: float = 0.95  # how much of its old reputation a client keeps per round; 1: weights stay those of round 1

    form: ClassVar[Form] = sparse.Sparse("update")  # in an embedding, only the rows of the client's words change
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
        """The largest entries of the average update, as many per tensor as the client has earned."""
        if client_id in state["removed"]:  # tested with the model it has
            return None if purpose is Purpose.TRAIN else Payload()
        earned = state["earned"].get(client_id)
        if earned is None:
            return Payload()
        update = state["updates"][earned["round"]]
        return Payload(reward(update, earned["share"]), {"round": earned["round"], "weight": earned["weight"]})

    def apply(self, client: Client, download: Payload) -> None:
        params = client.state.get("params", client.initial)
        own = client.state.get("update")
        # A reward belongs to one update: if the client's last one did not arrive, it applies that update alone.
        if own is not None and download.metrics.get("round") != client.state["round"]:
            params = add(params, own)
        elif own is not None:
            earned = without(client.buffers, sparse.decode(download.tensors, own))  # honest servers never send these
            params = add(add(params, own, alpha=self.kept(download.metrics["weight"])), earned)
        client.load(params)

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before = client.params()
        metrics = client.fit(round)
        after = client.params()
        update = self.scaled(without(client.buffers, subtract(after, before)))
        # Running statistics are the client's own.
        start = {name: after[name] if name in client.buffers else before[name] for name in before}
        if all(bool(tensor.isfinite().all()) for tensor in after.values()):  # otherwise it would never recover
            client.state |= {"params": start, "update": update, "round": round}
        return Payload({"update": update}, metrics)

    @abstractmethod
    def kept(self, weight: float) -> float:
        """Return how much of its own update, of this weight in the average, a client keeps beside its reward."""

    @abstractmethod
    def scaled(self, update: Tensors) -> Tensors:
        """Return an update as it is uploaded."""

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"update": state["updates"][state["round"]]}

    def report(self, state: State) -> dict[str, Any]:
        names = ("reputation", "weights", "removed")
        return {name: {str(client): value for client, value in state[name].items()} for name in names}


@dataclass(frozen=True)
class Scaled(Reputation):
    """RFFL's and CGSV's reputation: from the cosine with the reputation-weighted average. Reputations sum to 1.

    The reputation of an absent client shrinks as that of the others grows. A new client starts with the mean.
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
        # In float64, because the factor of a tiny update overflows float32.
        factor = self.gamma / length
        return {name: (tensor.double() * factor).to(tensor.dtype) for name, tensor in update.items()}

    def agreement(
        self, state: State, uploads: dict[int, Payload]
    ) -> tuple[Tensors, dict[int, float], dict[int, float]]:
        """Return the reputation-weighted average, its weights, and the reputations after this round."""
        updates = {client: self.scaled(upload.tensors["update"]) for client, upload in uploads.items()}
        reputation = admitted(state["reputation"], {c: upload.metrics["examples"] for c, upload in uploads.items()})
        weights = shares({client: reputation[client] for client in updates})
        average = mean(list(updates.values()), list(weights.values()))
        for client, agreed in zip(updates, cosines(list(updates.values()), average), strict=True):
            reputation[client] = max(0.0, self.alpha * reputation[client] + (1 - self.alpha) * agreed)
        return average, weights, shares(reputation)


def admitted(reputation: dict[int, float], examples: dict[int, float]) -> dict[int, float]:
    """Add new clients: in the first round with their share of the examples, later with the mean reputation."""
    if not reputation:
        return shares(examples)
    entry = sum(reputation.values()) / len(reputation)
    return shares(dict(sorted((dict.fromkeys(examples, entry) | reputation).items())))


def outstanding(
    state: State, round: int, average: Tensors, news: dict[int, dict[str, float]], removed: dict[int, int]
) -> State:
    """Return what remaining clients have earned, by the last round in which they took part, and the averages needed."""
    earned = {client: e for client, e in sorted((state["earned"] | news).items()) if client not in removed}
    held = {e["round"] for e in earned.values()} | {round}
    updates = {r: update for r, update in (state["updates"] | {round: average}).items() if r in held}
    return {"updates": updates, "earned": earned}


def shares(values: dict[int, float]) -> dict[int, float]:
    """Return each value's share of the sum; equal shares if all are 0."""
    total = math.fsum(values.values())
    return {client: value / total if total > 0 else 1 / len(values) for client, value in values.items()}


def reward(update: Tensors, share: float) -> dict[str, Tensors]:
    """Return, per tensor, the ``ceil(share * size)`` largest entries by magnitude; the first win ties."""
    kept: dict[str, Tensor] = {
        name: masks.top(tensor.abs(), math.ceil(share * tensor.numel())) for name, tensor in update.items()
    }
    return sparse.encode(update, kept)


def without(names: frozenset[str], tensors: Tensors) -> Tensors:
    """Return `tensors` with zeros in place of `names`."""
    return {name: torch.zeros_like(tensor) if name in names else tensor for name, tensor in tensors.items()}
