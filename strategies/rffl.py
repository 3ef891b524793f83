"""RFFL: who contributes what others agree with earns reputation, and receives as much of the common update in return.

Xu and Lyu, "A Reputation Mechanism Is All You Need: Collaborative Fairness and Adversarial Robustness in Federated
Learning", 2020, arXiv 2011.10464. A reputation is a moving average of the cosine between a client's update and the
average by reputation. Nobody gets a global model: all train models of their own, and what they get is a reward.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedshare import masks, sparse
from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Strategy
from fedshare.tensors import Tensors, add, mean, subtract, zeros_like

OWN = ("paper", "code", "cgsv")


@dataclass(frozen=True)
class RFFL(Strategy):
    """Who is absent from a round keeps its reward; its reputation shrinks as that of the others grows, for all together
    are 1. Who is new enters with the mean reputation.

    `own` is what becomes of a client's own update. "paper": it stays in the client's model, and its part of the average
    is taken out of the reward. "code": the released code's, where it stays in both. "cgsv": that of the authors'
    later method, where the reward takes its place. A client that is removed is asked for no update any more.
    """

    gamma: float = 0.5  # the norm to which every update is scaled
    alpha: float = 0.95  # how much of its old reputation a client keeps each round; 1: weights stay those of round 1
    beta: float = 1 / 3  # who has less than this share of the mean reputation is removed
    warmup: int = 10  # the first round in which somebody may be removed
    own: str = "paper"  # what becomes of a client's own update: paper, code or cgsv

    def __post_init__(self) -> None:
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise UserError(f"gamma={self.gamma}: must be above 0")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value}: must be from 0 to 1")
        if self.warmup < 1:
            raise UserError(f"warmup={self.warmup}: must be at least 1")
        if self.own not in OWN:
            raise UserError(f"own={self.own}: must be {', '.join(OWN)}")

    def init(self, params: Tensors) -> State:
        return {
            "updates": {0: zeros_like(params)},
            "round": 0,
            "reputation": {},
            "weights": {},
            "earned": {},
            "removed": {},
        }

    def download(self, state: State, client_id: int) -> Payload | None:
        """The largest entries of the average update, as many of each tensor as the client has earned."""
        if client_id in state["removed"]:
            return None
        earned = state["earned"].get(client_id)
        if earned is None:
            return Payload()
        update = state["updates"][earned["round"]]
        return Payload(reward(update, earned["share"]), {"round": earned["round"], "weight": earned["weight"]})

    def test_download(self, state: State, client_id: int) -> Payload | None:
        """Who is removed is tested with the model it has."""
        return self.download(state, client_id) or Payload()

    def apply(self, client: Client, download: Payload) -> None:
        params = client.state.get("params", client.initial)
        own = client.state.get("update")
        # A reward is for one update: where the client's last one did not arrive, it goes on with that alone.
        if own is not None and download.metrics.get("round") != client.state["round"]:
            params = add(params, own)
        elif own is not None:
            kept = {"paper": 1 - download.metrics["weight"], "code": 1.0, "cgsv": 0.0}[self.own]
            parameters = dict(client.model.named_parameters())
            earned = sparse.decode(download.tensors, own)
            # Nobody honest sends running statistics.
            earned = {name: t if name in parameters else torch.zeros_like(t) for name, t in earned.items()}
            params = add(add(params, own, alpha=kept), earned)
        client.load(params)

    def train(self, client: Client, round: int) -> Payload:
        before = client.params()
        metrics = client.fit(round)
        after = client.params()
        parameters = dict(client.model.named_parameters())
        change = {name: t if name in parameters else torch.zeros_like(t) for name, t in subtract(after, before).items()}
        update = self.scaled(change)
        # Running statistics are the client's own.
        start = {name: before[name] if name in parameters else after[name] for name in before}
        if all(bool(tensor.isfinite().all()) for tensor in after.values()):  # or it would never find back
            client.state |= {"params": start, "update": update, "round": round}
        return Payload({"update": update}, metrics)

    def scaled(self, update: Tensors) -> Tensors:
        """As it is uploaded."""
        return normalised(update, self.gamma)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        uploads = {client: uploads[client] for client in sorted(uploads) if client not in state["removed"]}
        if not uploads:
            return state
        updates = {client: normalised(upload.tensors["update"], self.gamma) for client, upload in uploads.items()}
        reputation = admitted(state["reputation"], {c: upload.metrics["examples"] for c, upload in uploads.items()})

        weights = shares({client: reputation[client] for client in updates})
        average = mean(list(updates.values()), list(weights.values()))
        for client, update in updates.items():
            agreement = cosine(update, average)
            reputation[client] = max(0.0, self.alpha * reputation[client] + (1 - self.alpha) * agreement)
        reputation = shares(reputation)
        best = max(reputation, key=lambda client: reputation[client])

        removed = dict(state["removed"])
        if round >= self.warmup:
            least = self.beta / len(reputation)
            removed |= {client: round for client in updates if reputation[client] < least and client != best}
            reputation = shares({client: r for client, r in reputation.items() if client not in removed})
        rewards = self.rewards(reputation)
        news = {
            client: {"round": round, "weight": weights[client], "share": rewards[client]}
            for client in updates
            if client not in removed
        }
        after = {"round": round, "reputation": reputation, "weights": weights, "removed": removed}
        return after | outstanding(state, round, average, news, removed)

    def rewards(self, reputation: dict[int, float]) -> dict[int, float]:
        """How much of the common update each has earned, from 0 to 1."""
        best = max(reputation.values())
        return {client: r / best for client, r in reputation.items()}

    def pack(self, upload: Payload) -> Payload:
        """Sparse, where that is smaller: of an embedding, only the words that a client has change."""
        update = upload.tensors["update"]
        packed = Payload(sparse.encode(update, {name: t != 0 for name, t in update.items()}), upload.metrics)
        return packed if packed.nbytes < upload.nbytes else upload

    def unpack(self, upload: Payload, expected: dict[str, Tensors]) -> Payload:
        if "update" in upload.tensors:
            return upload
        return Payload({"update": sparse.decode(upload.tensors, expected["update"])}, upload.metrics)

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"update": state["updates"][state["round"]]}

    def report(self, state: State) -> dict[str, Any]:
        """Each client's reputation, of all that are left together 1, its weight in the round, and who is removed."""
        told = ("reputation", "weights", "removed")
        return {name: {str(client): value for client, value in state[name].items()} for name in told}


def outstanding(
    state: State, round: int, average: Tensors, news: dict[int, dict[str, float]], removed: dict[int, int]
) -> State:
    """What everyone who is left has earned, by the last round they took part in, and the averages it is part of."""
    earned = {client: e for client, e in sorted((state["earned"] | news).items()) if client not in removed}
    held = {e["round"] for e in earned.values()} | {round}
    updates = {r: update for r, update in (state["updates"] | {round: average}).items() if r in held}
    return {"updates": updates, "earned": earned}


def normalised(update: Tensors, norm: float) -> Tensors:
    """`update`, scaled to that norm over all its tensors; nothing stays nothing."""
    length = math.sqrt(dot(update, update))
    if not length > 0:
        return update
    # In float64: the factor of an update that is almost nothing is beyond float32.
    return {name: (tensor.double() * (norm / length)).to(tensor.dtype) for name, tensor in update.items()}


def cosine(a: Tensors, b: Tensors) -> float:
    """0 where one of them is nothing."""
    length = math.sqrt(dot(a, a) * dot(b, b))
    return dot(a, b) / length if length > 0 else 0.0


def dot(a: Tensors, b: Tensors) -> float:
    return sum(float(torch.dot(a[name].double().reshape(-1), b[name].double().reshape(-1))) for name in a)


def admitted(reputation: dict[int, float], examples: dict[int, float]) -> dict[int, float]:
    """With those who are new: in the first round by their share of the examples, later with the mean reputation."""
    if not reputation:
        return shares(examples)
    entry = sum(reputation.values()) / len(reputation)
    return shares(dict(sorted((dict.fromkeys(examples, entry) | reputation).items())))


def shares(values: dict[int, float]) -> dict[int, float]:
    total = math.fsum(values.values())
    # Where nobody has any, all have alike.
    return {client: value / total if total > 0 else 1 / len(values) for client, value in values.items()}


def reward(update: Tensors, share: float) -> dict[str, Tensors]:
    """Of each tensor the ``ceil(share * size)`` largest entries by magnitude; of equal ones those that come first."""
    kept: dict[str, Tensor] = {
        name: masks.top(tensor.abs(), math.ceil(share * tensor.numel())) for name, tensor in update.items()
    }
    return sparse.encode(update, kept)
