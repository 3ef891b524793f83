"""The row of metrics of a round."""

from typing import Any

from fedshare.payload import Payload, evaluation_flaw
from fedshare.rounds.schedule import Schedule
from fedshare.state import State
from fedshare.strategy import Strategy
from fedshare.tasks import Task, metrics
from fedshare.tensors import Tensors, is_finite


def row_of(
    strategy: Strategy,
    state: State,
    round: int,
    uploads: dict[int, Payload],
    dropped: dict[int, str],
    digest: str,
) -> dict[str, Any]:
    return (
        averages(uploads)
        | strategy.report(state)
        | {
            "round": round,
            "clients": sorted(uploads),
            "dropped": {str(client): reason for client, reason in dropped.items()},
            "examples": int(sum(upload.metrics["examples"] for upload in uploads.values())),
            "digest": digest,
        }
    )


def told(answers: dict[int, Payload], downloads: dict[int, Payload], weakened: str | None) -> dict[str, Any]:
    """Return the parts of a row that report abnormal training; empty if there are none."""
    losses = {c: answers[c].metrics.get("train_loss") for c in sorted(answers.keys() & downloads.keys())}
    odd = [client for client, loss in losses.items() if loss is not None and not is_finite(loss)]
    return ({"not_finite": {"train_loss": odd}} if odd else {}) | ({"weakened": weakened} if weakened else {})


def merged(row: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    odd = row.get("not_finite", {}) | test.get("not_finite", {})
    return row | test | ({"not_finite": odd} if odd else {})


def row_of_test(task: Task, answers: dict[int, Payload], schedule: Schedule) -> dict[str, Any]:
    """Return the test metrics; those on validation examples, and of clients that never train, are separate."""
    told = {client: answer.metrics for client, answer in answers.items()}

    def summary(group: str, unseen: bool) -> dict[str, Any]:
        sums = {
            c: a.tensors[group] for c, a in answers.items() if group in a.tensors and (c in schedule.unseen) is unseen
        }
        return metrics.summarise(task, sums, told)

    row = summary("sums", False)
    for name, found in (("validation", summary("validation", False)), ("unseen", summary("sums", True))):
        if found:
            row[name] = {key: value for key, value in found.items() if key not in ("per_client", "headline", "better")}
            diverged = found.get("not_finite", {}).get("loss", ())
            row[name]["clients"] = len(found["per_client"]["examples"]) - len(diverged)
    return row


def test_flaw(answer: Payload, task: Task, zeros: Tensors, schedule: Schedule, client: int) -> str | None:
    """Return why a client's test is invalid; None if it is valid."""
    most = {"sums": schedule.most_tested(client), "validation": schedule.most_validated(client)}
    if reason := evaluation_flaw(answer, zeros, most["sums"], most["validation"]):
        return reason
    reasons = {group: task.flaw(sums, most[group]) for group, sums in answer.tensors.items()}
    return next((f"{group}: {reason}" for group, reason in reasons.items() if reason), None)


def averages(uploads: dict[int, Payload]) -> dict[str, float]:
    """Average the metrics that every upload reports (the training loss) by examples; of ``max_...`` take the largest.

    ``max_...`` need only be in half of the uploads. Other metrics must be in all: one client must not add a column.
    """
    reports = [upload.metrics for upload in uploads.values()]
    weights = [report["examples"] for report in reports]
    averages = {}
    for name in sorted(set().union(*reports) - {"examples"}):
        values = [report[name] for report in reports if name in report]
        if name.startswith("max_") and 2 * len(values) >= len(reports):
            averages[name] = max(values)
        elif len(values) == len(reports):
            averages[name] = metrics.weighted_mean(values, weights)
    return averages
