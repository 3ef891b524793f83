"""A cell of a matrix: an attack, a defence, a partition and a seed, the result, and the numbers derived from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fedshare.report.fairness import collaborative
from fedshare.report.rows import headline, higher
from fedshare.tasks.metrics import weighted_mean, worst_share

_OF_ROW = (
    *("accuracy_adversaries", "attack_success", "adversaries_weight", "adversaries_removed", "honest_removed"),
    *("accuracy", "accuracy_mean", "accuracy_worst10", "loss", "tested", "tested_of"),
)


@dataclass(frozen=True)
class Entry:
    """A cell and its result, which has the keys ``row`` (the last one), ``clients``, ``adversaries``,
    ``halted`` (why, or None), ``detection``, ``rounds``, ``bytes_up``, ``bytes_down`` and ``seconds``."""

    attack: str
    defence: str
    partition: str
    seed: int
    result: dict[str, Any]
    fairness: float | None = None
    aside: frozenset[int] = frozenset()  # clients excluded because they are adversaries in other entries

    @property
    def halted(self) -> bool:
        return self.result["halted"] is not None

    @property
    def accuracy(self) -> dict[int, float | None]:
        """Accuracy by client."""
        found = self.result["row"].get("per_client", {}).get(headline([self.result["row"]]), {})
        return {int(client): value for client, value in found.items()}

    @property
    def honest(self) -> list[int]:
        """The tested clients that the numbers are about: all tested clients if there is no adversary."""
        return sorted(self.accuracy.keys() - self.aside - set(self.result["adversaries"]))

    @property
    def lacking(self) -> bool:
        """Whether some clients were not tested."""
        return bool(self.result["row"].get("untested"))

    def values(self) -> dict[str, Any]:
        """The numbers by name; None for missing ones."""
        row = self.result["row"]
        found = [math.nan if (value := self.accuracy[client]) is None else value for client in self.honest]
        mean = weighted_mean(found, [1.0] * len(found))
        worst = worst_share(found, 0.1, higher([row])) if found else None
        removed = {} if self.result["adversaries"] or "removed" not in row else {"honest_removed": len(row["removed"])}
        return {
            "accuracy_honest": _finite(mean),
            "accuracy_honest_worst10": _finite(worst),
            "fairness": self.fairness,
            **{name: (removed | row).get(name) for name in _OF_ROW},
            **dict.fromkeys(("tpr", "fpr"), None),
            **{name: value for name, value in (self.result["detection"] or {}).items() if name != "rounds"},
            "removal_round": (self.result["detection"] or {}).get("rounds"),
            **{name: self.result[name] for name in ("rounds", "bytes_up", "bytes_down", "seconds")},
        }


def of_the_same_clients(entries: Sequence[Entry]) -> list[Entry]:
    """Return `entries` so that all with the same partition and seed exclude the adversaries of any of them."""
    liars: dict[tuple[str, int], set[int]] = {}
    for entry in entries:
        liars.setdefault((entry.partition, entry.seed), set()).update(entry.result["adversaries"])
    return [replace(entry, aside=frozenset(liars[entry.partition, entry.seed])) for entry in entries]


def with_fairness(entries: Sequence[Entry], attack: str, defence: str) -> list[Entry]:
    """Return `entries` with the collaborative fairness of each: the correlation of its honest clients' accuracies with
    those in the cell of `attack` and `defence` on the same partition with the same seed."""
    alone = {
        (entry.partition, entry.seed): entry.accuracy
        for entry in entries
        if (entry.attack, entry.defence) == (attack, defence) and not entry.halted
    }
    judged = []
    for entry in entries:
        own, found = alone.get((entry.partition, entry.seed), {}), None
        both = [(own.get(client), entry.accuracy[client]) for client in entry.honest]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        if pairs and not entry.halted and entry.defence != defence:
            found = collaborative([a for a, _ in pairs], [b for _, b in pairs])
        judged.append(replace(entry, fairness=_finite(found)))
    return judged


Cells = dict[tuple[str, str], list[Entry]]  # by attack and defence, of one partition


def cells_of(entries: Sequence[Entry], partition: str) -> Cells:
    cells: Cells = {}
    for entry in entries:
        if entry.partition == partition:
            cells.setdefault((entry.attack, entry.defence), []).append(entry)
    return cells


def names_of(entries: Sequence[Entry], axis: str) -> list[str]:
    """Return the distinct values on an axis (``attack``, ``defence``, ``partition``), in their order."""
    return list(dict.fromkeys(getattr(entry, axis) for entry in entries))


def known_values(group: list[Entry], name: str) -> list[float]:
    """Return the finite values of `name` in runs that did not halt."""
    values = (entry.values()[name] for entry in group if not entry.halted)
    return [value for value in values if value is not None and math.isfinite(value)]


def mean_of(group: list[Entry]) -> float | None:
    """Return the mean accuracy of the honest clients in runs that did not halt; None if there is none."""
    values = known_values(group, "accuracy_honest")
    return fmean(values) if values else None


def anybody_lies(entries: Sequence[Entry]) -> bool:
    return any(entry.result["adversaries"] for entry in entries)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
