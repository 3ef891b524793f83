"""The best round of a run, by a metric on validation examples. The test part is never used for selection."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Best:
    """The best round so far. A round without validation metrics, or with NaN, is never the best.

    Neither is one in which fewer clients were tested than in the best: a mean can rise because a client is absent.
    """

    metric: str
    higher: bool  # whether higher is better
    patience: int | None = None  # stop after this many rounds without improvement; None: never
    round: int = 0  # the best round; 0: none yet
    value: float = math.nan
    clients: int = 0  # number of clients tested in it
    last: int = 0  # the last round seen

    def see(self, row: Mapping[str, Any]) -> bool:
        """Record a row; return whether its round is the best so far."""
        self.last = row["round"]
        found = row.get("validation", {})
        value, clients = found.get(self.metric), found.get("clients", 0)
        if value is None or not math.isfinite(value) or (self.round and clients < self.clients):
            return False
        better = clients > self.clients or (value > self.value if self.higher else value < self.value)
        if self.round and not better:
            return False
        self.round, self.value, self.clients = row["round"], value, clients
        return True

    @property
    def over(self) -> bool:
        return self.patience is not None and self.round > 0 and self.last - self.round >= self.patience
