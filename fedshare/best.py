"""The best round of a run, by a metric on validation examples; the test part is reported, and never selected on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Best:
    """What the rows so far say. A round without validation metrics, or with NaN, is no better than any other."""

    metric: str
    higher: bool  # whether more is better
    patience: int | None = None  # rounds without a better one, after which the run is over; None: never
    round: int = 0  # the best one; 0: none yet
    value: float = math.nan
    last: int = 0  # the round seen last

    def see(self, row: Mapping[str, Any]) -> bool:
        """Whether this row's round is the best so far."""
        self.last = row["round"]
        value = row.get("validation", {}).get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        if self.round and not (value > self.value if self.higher else value < self.value):
            return False
        self.round, self.value = row["round"], value
        return True

    @property
    def over(self) -> bool:
        return self.patience is not None and self.round > 0 and self.last - self.round >= self.patience
