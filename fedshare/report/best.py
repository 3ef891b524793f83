"""The best round of a run, by a metric on validation examples; the test part is reported, and never selected on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Best:
    """What the rows so far say. A round without validation metrics, or with NaN, is no better than any other.

    Nor is one in which fewer clients were tested than in the best: a mean can rise because somebody is away.
    """

    metric: str
    higher: bool  # whether more is better
    patience: int | None = None  # rounds without a better one, after which the run is over; None: never
    round: int = 0  # the best one; 0: none yet
    value: float = math.nan
    clients: int = 0  # over how many clients that is
    last: int = 0  # the round seen last

    def see(self, row: Mapping[str, Any]) -> bool:
        """Whether this row's round is the best so far."""
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
