"""Numbers about many clients, made from each client's own: pure functions, the same in every order of the clients."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def weighted_mean(values: Iterable[float], weights: Iterable[float]) -> float:
    """The mean of `values` by `weights`; NaN where the weights add up to nothing or a value is NaN."""
    pairs = [(float(value), float(weight)) for value, weight in zip(values, weights, strict=True) if weight]
    total = math.fsum(weight for _, weight in pairs)
    try:
        return math.fsum(value * weight for value, weight in pairs) / total if total > 0 else math.nan
    except (OverflowError, ValueError):  # fsum refuses a sum beyond the floats, and inf - inf
        return math.nan


def worst_share(values: Sequence[float], share: float = 0.1) -> float:
    """The mean over the lowest `share` of `values`, at least one of them; a NaN counts as the lowest of all."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} must be above 0 and at most 1")
    count = max(1, math.floor(share * len(values) + 1e-9))  # 0.29 * 100 is a little less than 29
    worst = sorted(map(float, values), key=lambda value: (not math.isnan(value), value))[:count]
    return weighted_mean(worst, [1.0] * len(worst))


def perplexity(loss: float) -> float:
    """``exp(loss)``: among how many equally likely tokens a model that loses so much is undecided."""
    return math.exp(loss) if not loss > 700 else math.inf


def summarise(per_client: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """One evaluation's part of a row of `metrics.jsonl`, from each client's ``accuracy``, ``loss`` and ``examples``.

    ``accuracy`` and ``loss`` are over all test examples, ``accuracy_mean`` over clients, ``accuracy_worst10`` over the
    worst tenth of the clients. Clients without examples are left out; where no client has any, the answer is empty.
    Of clients who can say how far an attack reaches its aim at their models, ``per_client`` has the ``attack_success``.
    For language models, whose clients give a ``perplexity``, it is that of the loss: ``exp(loss)``.
    One client's NaN loss makes ``loss`` NaN, for a model that diverges anywhere must not look well; ``per_client``
    tells where.
    """
    clients = {client: per_client[client] for client in sorted(per_client) if per_client[client]["examples"] > 0}
    if not clients:
        return {}
    accuracy, loss, examples = (
        [float(client[key]) for client in clients.values()] for key in ("accuracy", "loss", "examples")
    )
    whole = weighted_mean(loss, examples)
    language = all("perplexity" in client for client in clients.values())
    aims = {str(id): client["attack_success"] for id, client in clients.items() if "attack_success" in client}
    aims = {id: float(aim) for id, aim in aims.items() if 0 <= aim <= 1}
    return ({"perplexity": perplexity(whole)} if language else {}) | {
        "accuracy": weighted_mean(accuracy, examples),
        "accuracy_mean": weighted_mean(accuracy, [1.0] * len(accuracy)),
        "accuracy_worst10": worst_share(accuracy, 0.1),
        "loss": whole,
        "per_client": {
            "accuracy": dict(zip(map(str, clients), accuracy, strict=True)),
            "loss": dict(zip(map(str, clients), loss, strict=True)),
            "examples": dict(zip(map(str, clients), map(int, examples), strict=True)),
        }
        | ({"attack_success": aims} if aims else {}),
    }
