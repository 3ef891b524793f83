"""Gradient tracking with local steps (K-GT): each peer corrects its steps by the estimated gradient of the others.

Liu, Lin, Koloskova and Stich, "Decentralized Gradient Tracking with Local Steps", 2023, arXiv 2301.01313, algorithm 1
with a communication step of 1. Corrections begin at 0, and not at the first gradients: with one step of the whole data
in a round it is then GT-DSGD (DIGing whose models are averaged after the step; Nedić et al. 2017).
"""

from dataclasses import dataclass
from typing import ClassVar

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.gossip import mixed
from fedshare.strategy import Purpose
from fedshare.tensors import Tensors, add, parameters, scale, subtract, zeros_like


@dataclass(frozen=True)
class GradientTracking(FedAvg):
    """For SGD without momentum. With a server it resembles SCAFFOLD.

    ``direction`` is the average of the neighbours' directions, each the change in a round divided by rate and steps. A
    client's memory has both its correction before its last round and the part of the next that it knows itself; which
    counts depends on whether its last upload was received.
    """

    weighted: ClassVar[bool] = False  # not a field here: the graph's weights count, not numbers of examples
    lr: float = 0.05  # the client's learning rate

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"lr={self.lr}: must be above 0")

    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params, "direction": zeros_like(parameters(params)), "received": {}}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        received = {"received": float(state["received"].get(client_id, 0))}
        return Payload({"params": state["params"], "direction": state["direction"]}, received)

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before, correction = client.params(), corrected(client, download)
        metrics = client.fit(round, correction=correction)
        after = client.params()
        path = self.lr * client.training.rate(round) * client.steps()
        direction = {name: (before[name] - after[name]) / path for name in correction}
        client.state |= {"round": round, "correction": correction, "rest": subtract(correction, direction)}
        return Payload({"params": after, "direction": direction}, metrics)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        received = dict(sorted((state["received"] | dict.fromkeys(uploads, round)).items()))
        return {"params": mixed(uploads, "params"), "direction": mixed(uploads, "direction"), "received": received}

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"params": state["params"], "direction": state["direction"]}


def corrected(client: Client, download: Payload) -> Tensors:
    """Return the correction of a client's next steps: c - z of its last round plus the average z of its neighbours."""
    if "rest" not in client.state:
        return scale(download.tensors["direction"], 0.0)
    if client.state["round"] != download.metrics["received"]:
        kept: Tensors = client.state["correction"]
        return kept
    return add(client.state["rest"], download.tensors["direction"])
