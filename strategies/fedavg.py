"""Federated averaging: clients train the global model, and the server averages their models.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, algorithm 1.
"""

from dataclasses import dataclass

from fedshare.client import Client
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors, mean


@dataclass(frozen=True)
class FedAvg(Strategy):
    weighted: bool = True  # weight clients by their number of examples, as in the paper; else equally

    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return Payload({"params": state["params"]})

    def apply(self, client: Client, download: Payload) -> None:
        client.load(download.tensors["params"])

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        metrics = client.fit(round)
        return Payload({"params": client.params()}, metrics)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        ordered = [upload for _, upload in sorted(uploads.items())]
        weights = [upload.metrics["examples"] if self.weighted else 1.0 for upload in ordered]
        return {"params": mean([upload.tensors["params"] for upload in ordered], weights)}
