"""No sharing: each client trains its own model. The standalone baseline for every comparison."""

from dataclasses import dataclass

from fedshare.client import Client
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors


@dataclass(frozen=True)
class Local(Strategy):
    def init(self, params: Tensors, clients: int) -> State:
        return {}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return Payload()

    def apply(self, client: Client, download: Payload) -> None:
        client.load(client.state.get("params", client.initial))

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        metrics = client.fit(round)
        client.state["params"] = client.params()
        return Payload(metrics=metrics)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        return state

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {}
