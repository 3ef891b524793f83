"""Clustered federated learning: a cluster whose model has converged but whose clients still disagree is split in two.

Sattler, Müller and Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multi-Task Optimization under
Privacy Constraints", IEEE TNNLS 2021, arXiv 1910.01991, algorithms 1 (bipartition), 2 (recursive splits) and 3
(assignment of late clients). A client's update is its upload minus its download, over all shared tensors, including
running statistics.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategy import Purpose
from fedshare.tensors import Tensors, flatten, subtract


@dataclass(frozen=True)
class CFL(FedAvg):
    """FedAvg within each cluster. Clusters are the leaves of a tree of models, and all clients start at its root.

    Clients that take part in the round of a split continue in one half, from the average of its members. A client that
    is absent then, or new, receives the model before the split; its next upload moves it to the half whose mean update
    is more similar to its own (the paper compares it with each member's). That upload enters no cluster's average,
    because it started from another model.
    """

    eps1: float = 0.4  # a cluster has converged if the norm of its mean update is below this
    eps2: float = 1.6  # its clients disagree if the norm of any client's update is above this
    warmup: int = 20  # rounds before any cluster may be split

    def __post_init__(self) -> None:
        for name in ("eps1", "eps2", "warmup"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"{name} must be at least 0, not {value}")

    reports: ClassVar[dict[str, str]] = {"clusters": "the clients of each cluster"}

    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params, "nodes": [{"params": params}], "places": {}}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return Payload({"params": state["nodes"][state["places"].get(client_id, 0)]["params"]})

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        nodes, places = list(state["nodes"]), dict(state["places"])
        standing: dict[int, dict[int, Payload]] = {}
        for client, upload in sorted(uploads.items()):
            standing.setdefault(places.get(client, 0), {})[client] = upload

        for place, members in sorted(standing.items()):
            node = nodes[place]
            # In float64: the square of 3e38 overflows float32, and an infinite norm would hide its sender.
            updates = {client: update(upload.tensors["params"], node).double() for client, upload in members.items()}
            if "halves" in node:  # split while these clients were absent
                for client, own in updates.items():
                    likeness = [F.cosine_similarity(own, mean.double(), dim=0) for mean in node["updates"]]
                    places[client] = node["halves"][int(likeness[1] > likeness[0])]
                continue
            average = self.average(members)
            still = update(average, node).double().norm() < self.eps1
            apart = max(own.norm() for own in updates.values()) > self.eps2
            if round > self.warmup and still and apart and len(members) > 1:
                halves = [
                    {client: members[client] for client in half}
                    for half in bipartition(list(members), F.normalize(torch.stack(list(updates.values()))))
                ]
                leaves = [{"params": self.average(half)} for half in halves]
                numbers = [len(nodes), len(nodes) + 1]
                nodes[place] = node | {"halves": numbers, "updates": [update(leaf["params"], node) for leaf in leaves]}
                nodes += leaves
                places |= {client: number for number, half in zip(numbers, halves, strict=True) for client in half}
            else:
                nodes[place] = {"params": average}
                places |= dict.fromkeys(members, place)
        return {"params": self.average(uploads), "nodes": nodes, "places": dict(sorted(places.items()))}

    def average(self, uploads: dict[int, Payload]) -> Tensors:
        params: Tensors = super().aggregate({}, 0, uploads)["params"]
        return params

    def report(self, state: State) -> dict[str, Any]:
        """The members of each cluster, without clients not yet assigned."""
        leaves = [number for number, node in enumerate(state["nodes"]) if "halves" not in node]
        return {"clusters": [[client for client, place in state["places"].items() if place == leaf] for leaf in leaves]}


def update(params: Tensors, node: dict[str, Any]) -> Tensor:
    """Return the update from a node's model to `params`, as one vector."""
    return flatten(subtract(params, node["params"]))


def bipartition(clients: list[int], directions: Tensor) -> list[list[int]]:
    """Return the two halves that minimise the largest cosine similarity between them, by algorithm 1.

    It joins the most similar pair (the first on a tie), and so on, until two sets are left. The authors' notebook uses
    complete linkage instead, which may miss that optimum.
    """
    similarity = (directions @ directions.T).tolist()
    sets = [{row} for row in range(len(clients))]
    for i, j in sorted(combinations(range(len(clients)), 2), key=lambda pair: -similarity[pair[0]][pair[1]]):
        if len(sets) == 2:
            break
        joined = [rows for rows in sets if i in rows or j in rows]
        sets = [rows for rows in sets if rows not in joined] + [set().union(*joined)]
    return sorted(sorted(clients[row] for row in rows) for rows in sets)
