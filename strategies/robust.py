"""Robust averaging: FedAvg whose server aggregates updates by a rule that a few adversaries cannot move far.

The rules, with their papers, are in `fedshare.rules`: medians, Krum, clipping and others.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from fedshare.payload import Payload
from fedshare.rules import Rule
from fedshare.rules.matrix import moved, updates_of
from fedshare.rules.rule import weakness
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg
from fedshare.tensors import Tensors


@dataclass(frozen=True)
class Guarded(FedAvg):
    """FedAvg with an average that ignores the number of examples, which an adversary may exaggerate."""

    weighted: ClassVar[bool] = False  # not a field here

    reports: ClassVar[dict[str, str]] = {"weights": "each client's share in the round's average"}

    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params, "weights": {}}

    def report(self, state: State) -> dict[str, Any]:
        """Each client's share in the round's average, if the rule defines one."""
        weights = state["weights"]
        return {"weights": {str(client): weight for client, weight in weights.items()}} if weights else {}


@dataclass(frozen=True, kw_only=True)
class Robust(Guarded):
    """A client's update is its upload minus the global model, over all shared tensors, including running statistics."""

    rule: Rule  # aggregates the updates: one of fedshare.rules

    def init(self, params: Tensors, clients: int) -> State:
        return super().init(params, clients) | {"update": updates_of([params], params)[0]}

    def weakness(self, clients: Collection[int]) -> str | None:
        return weakness(self.rule, len(clients))

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        clients = sorted(uploads)
        updates = updates_of([uploads[client].tensors["params"] for client in clients], state["params"])
        update, shares = self.rule(updates, state["update"])
        return {
            "params": moved(state["params"], update),
            "weights": {} if shares is None else dict(zip(clients, shares.tolist(), strict=True)),
            "update": update,
        }
