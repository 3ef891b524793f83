"""Metrics over clients, computed from each client's own: pure functions, independent of the order of the clients."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from fedshare.tasks import Task
from fedshare.tasks.task import add
from fedshare.tensors import Tensors, is_finite


def weighted_mean(values: Iterable[float], weights: Iterable[float]) -> float:
    """Return the mean of `values` weighted by `weights`; NaN if the weights sum to zero or a value is NaN."""
    pairs = [(float(value), float(weight)) for value, weight in zip(values, weights, strict=True) if weight]
    total = math.fsum(weight for _, weight in pairs)
    try:
        return math.fsum(value * weight for value, weight in pairs) / total if total > 0 else math.nan
    except (OverflowError, ValueError):  # fsum raises on overflow and on inf - inf
        return math.nan


def worst_share(values: Sequence[float], share: float = 0.1, higher: bool = True) -> float:
    """Return the mean over the worst `share` of `values`, at least one of them; NaN counts as worst.

    The worst are the lowest if `higher` values are better, otherwise the highest.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} must be above 0 and at most 1")
    count = max(1, math.floor(share * len(values) + 1e-9))  # 0.29 * 100 is slightly less than 29
    sign = 1 if higher else -1
    worst = sorted(map(float, values), key=lambda value: (not math.isnan(value), sign * value))[:count]
    return weighted_mean(worst, [1.0] * len(worst))


def summarise(
    task: Task, sums: Mapping[int, Tensors], told: Mapping[int, Mapping[str, float]] = MappingProxyType({})
) -> dict[str, Any]:
    """Return an evaluation's fields of a row of `metrics.jsonl`, from the sums of each client's test.

    A task's metrics and the ``loss`` are over all test examples. The ``headline`` metric is also given as a mean over
    clients, ``accuracy_mean``, and over the worst tenth of the clients, ``accuracy_worst10``: the lowest, or the
    highest if lower is ``better``. Clients without examples are left out; if no client has any, the result is empty.
    ``per_client`` has the ``attack_success`` of clients whose `told` has one. A loss that is not finite is excluded
    from the means, so that one client cannot spoil them; ``not_finite`` names its client. If no client's loss is
    finite, ``loss`` is NaN.
    """
    known = {client: sums[client] for client in sorted(sums) if sums[client]["examples"] > 0}
    if not known:
        return {}
    diverged = [client for client, found in known.items() if not is_finite(float(found["loss"]))]
    total, without = task.zeros(), dict.fromkeys(("loss", "weight"), torch.zeros((), dtype=torch.float64))
    for client, found in known.items():
        total = add(total, found | without if client in diverged else found)
    if len(diverged) == len(known):
        total |= {"loss": torch.tensor(math.nan, dtype=torch.float64), "weight": torch.ones((), dtype=torch.float64)}
    whole, each = task.scores(total), {str(client): task.scores(found) for client, found in known.items()}
    name = task.compared
    compared = {client: each[str(client)][name] for client in known}
    # The headline may be computed from the loss, as perplexity is.
    values = [value for client, value in compared.items() if client not in diverged or is_finite(value)]
    aims = {str(id): told[id]["attack_success"] for id in known if "attack_success" in told.get(id, {})}
    aims = {id: float(aim) for id, aim in aims.items() if 0 <= aim <= 1}
    per_client: dict[str, dict[str, Any]] = {
        metric: {client: scores[metric] for client, scores in each.items()} for metric in whole if metric != "examples"
    }
    per_client["examples"] = {client: int(scores["examples"]) for client, scores in each.items()}
    return {
        "headline": name,
        "better": "higher" if task.higher else "lower",
        **{metric: value for metric, value in whole.items() if metric != "examples"},
        f"{name}_mean": weighted_mean(values, [1.0] * len(values)),
        f"{name}_worst10": worst_share(values, 0.1, task.higher) if values else math.nan,
        "per_client": per_client | ({"attack_success": aims} if aims else {}),
        **({"not_finite": {"loss": diverged}} if diverged else {}),
    }
