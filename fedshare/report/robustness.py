"""The effect of an attack: pure functions of a row of ``metrics.jsonl`` and of the set of adversaries."""

import math
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

from fedshare.tasks.metrics import weighted_mean, worst_share


def observed(row: Mapping[str, Any], adversaries: Collection[int]) -> dict[str, Any]:
    """Return the additional metrics of a row if the adversaries are known; nothing if there are none.

    ``accuracy_honest`` and ``accuracy_honest_worst10`` are over honest clients, ``accuracy_adversaries`` is that of the
    adversaries; for other tasks it is the headline metric. ``attack_success`` (mean over honest clients) is how far
    the attack reaches its aim at their models, ``adversaries_weight`` the adversaries' share in the round's average,
    ``adversaries_removed`` and ``honest_removed`` count removed clients.
    """
    if not adversaries:
        return {}
    liars = {str(client) for client in adversaries}
    more: dict[str, Any] = {"adversaries": sorted(adversaries)}
    if "per_client" in row:
        name, higher = row.get("headline", "accuracy"), row.get("better", "higher") == "higher"
        honest, lying = split(row["per_client"][name], liars)
        if honest:
            more |= {f"{name}_honest": mean(honest), f"{name}_honest_worst10": worst_share(honest, higher=higher)}
        if lying:
            more[f"{name}_adversaries"] = mean(lying)
        reached, _ = split(row["per_client"].get("attack_success", {}), liars)
        if reached:
            more["attack_success"] = mean(reached)
    if "weights" in row:
        more["adversaries_weight"] = math.fsum(split(row["weights"], liars)[1])
    if "removed" in row:
        more["adversaries_removed"] = len(liars & row["removed"].keys())
        more["honest_removed"] = len(row["removed"].keys() - liars)
    return more


def detection(removed: Mapping[int, int], adversaries: Collection[int], clients: int) -> dict[str, float]:
    """Return how well removal finds the adversaries; `removed` maps removed clients to the round of their removal.

    ``tpr`` is the share of adversaries removed, ``fpr`` that of honest clients, ``rounds`` the median round in which
    adversaries were removed. NaN if a group is empty.
    """
    liars = set(adversaries)
    caught = [round for client, round in removed.items() if client in liars]
    honest = clients - len(liars)
    return {
        "tpr": len(caught) / len(liars) if liars else math.nan,
        "fpr": (len(removed) - len(caught)) / honest if honest else math.nan,
        "rounds": float(median(caught)) if caught else math.nan,
    }


def split(by_client: Mapping[str, float], liars: Collection[str]) -> tuple[list[float], list[float]]:
    """Return the values of honest clients, and those of adversaries."""
    honest = [value for client, value in by_client.items() if client not in liars]
    return honest, [value for client, value in by_client.items() if client in liars]


def mean(values: list[float]) -> float:
    return weighted_mean(values, [1.0] * len(values))
