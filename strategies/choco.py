"""CHOCO-SGD: peers exchange compressed changes, and all who receive them keep a copy of the sender's model.

Koloskova, Stich and Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication",
ICML 2019, arXiv 1902.00340, algorithm 2. Models and copies begin at the initial model instead of 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.forms import Form
from fedshare.forms.compressors import Compressor
from fedshare.forms.sparse import Sparse
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors, add, mean, subtract


@dataclass(frozen=True, kw_only=True)
class Choco(Strategy):
    """A client keeps its model; ``params`` is the average of the copies. Running statistics are not compressed.

    Each upload names the sender's last upload, from whose copy it is the change. A peer that has missed that one leaves
    the sender out. Whenever the participants are not those of the round before, a peer sends the change from the
    initial model once, uncompressed, which renews all copies. With a server no copy is ever missed.
    """

    gamma: float  # the share of the distance to the average that is taken in a round; smaller for stronger compression
    compressor: Compressor

    form: ClassVar[Form] = Sparse("update")

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma={self.gamma}: must be above 0 and at most 1")

    def init(self, params: Tensors, clients: int) -> State:
        return {"initial": params, "params": params, "copies": {}, "rounds": {}, "whole": False}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        copy = state["copies"].get(client_id, state["initial"])
        metrics = {"received": float(state["rounds"].get(client_id, 0)), "whole": float(state["whole"])}
        return Payload({"params": state["params"], "copy": copy}, metrics)

    def apply(self, client: Client, download: Payload) -> None:
        params, copy, own = download.tensors["params"], download.tensors["copy"], client.state
        if "trained" not in own:
            client.load(params)
        elif own["round"] != download.metrics["received"]:  # its last upload was lost: it keeps its model
            client.load(own["before"])
        else:
            away = subtract(params, copy)
            client.load(
                {
                    name: torch.add(tensor, away[name], alpha=1.0 if name in client.buffers else self.gamma)
                    for name, tensor in own["trained"].items()
                }
            )

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before = client.params()
        metrics = client.fit(round)
        trained = client.params()
        client.state |= {"round": round, "before": before, "trained": trained}
        if download.metrics["whole"]:
            since, update = 0, subtract(trained, client.initial)
        else:
            since, update = int(download.metrics["received"]), subtract(trained, download.tensors["copy"])
            changes = {name: change for name, change in update.items() if name not in client.buffers}
            update |= self.compressor.compress(changes)
        return Payload({"update": update, "since": {"since": torch.tensor(since)}}, metrics)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        rounds, fresh = state["rounds"], dict[int, Tensors]()
        for client, upload in sorted(uploads.items()):
            since = int(upload.tensors["since"]["since"])
            if since == 0:
                fresh[client] = add(state["initial"], upload.tensors["update"])
            elif since == rounds.get(client):
                fresh[client] = add(state["copies"][client], upload.tensors["update"])
        weights = [uploads[client].weight for client in fresh]
        known = [1.0 if weight is None else weight for weight in weights]
        last = {client for client, when in rounds.items() if when == max(rounds.values())}
        return {
            "initial": state["initial"],
            "params": mean(list(fresh.values()), known) if fresh else state["params"],
            "copies": dict(sorted((state["copies"] | fresh).items())),
            "rounds": dict(sorted((rounds | dict.fromkeys(fresh, round)).items())),
            "whole": bool(last) and last != uploads.keys() and None not in weights,
        }

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"update": state["params"], "since": {"since": torch.tensor(0)}}
