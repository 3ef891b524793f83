"""Stochastic gradient push: averaging over a directed graph, in which each sender only knows to whom it sends.

Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, algorithm 1; the averaging is
push-sum (Kempe, Dobra and Gehrke 2003). With the weights of ``peers.mixing=push`` some peers receive more than others;
a mass that is averaged along with the model shows how much, and is divided out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedshare.client import Client
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategy import Purpose
from fedshare.tensors import Tensors, mean


@dataclass(frozen=True)
class PushSum(FedAvg):
    """``params`` is the paper's z, the model without bias, and ``mass`` its w; x is their product, and is not kept.

    Training changes x, so it changes z by 1 / mass times as much. Running statistics are taken as they are.
    """

    weighted: ClassVar[bool] = False  # not a field here: the graph's weights count, not numbers of examples

    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params, "mass": {"mass": torch.ones(())}}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return Payload({"params": state["params"], "mass": state["mass"]})

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before, mass = client.params(), download.tensors["mass"]
        metrics = client.fit(round)
        after = client.params()
        params = {
            name: after[name] if name in client.buffers else start + (after[name] - start) / mass["mass"]
            for name, start in before.items()
        }
        return Payload({"params": params, "mass": mass}, metrics)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        ordered = [upload for _, upload in sorted(uploads.items())]
        shares = [1 / len(ordered) if upload.weight is None else upload.weight for upload in ordered]
        masses = [share * float(upload.tensors["mass"]["mass"]) for share, upload in zip(shares, ordered, strict=True)]
        # mean() divides by the sum of the masses: sum(share * x) / sum(share * w).
        params = mean([upload.tensors["params"] for upload in ordered], masses)
        return {"params": params, "mass": {"mass": torch.tensor(sum(masses))}}

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"params": state["params"], "mass": state["mass"]}
