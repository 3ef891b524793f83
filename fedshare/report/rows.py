"""What a row of ``metrics.jsonl`` says it is about. Rows of older runs say nothing: they are about accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
MARK = "!"  # behind a number that is over other clients than those that it stands beside
MOST_NAMED = 3  # clients in a line
FEW_CLIENTS, FEW_EXAMPLES = 2, 100  # in the worst tenth; in all tests: one example is more than a hundredth


def headline(rows: Sequence[Row]) -> str:
    """The metric by which clients are compared."""
    return next((str(row["headline"]) for row in rows if "headline" in row), "accuracy")


def higher(rows: Sequence[Row]) -> bool:
    """Whether more of it is better."""
    return next((row["better"] == "higher" for row in rows if "better" in row), True)


def among(row: Row) -> tuple[frozenset[str], frozenset[str]] | None:
    """The clients that a row's means are over, and those that they lack; None where nobody was asked."""
    if "untested" not in row and "per_client" not in row:
        return None
    return frozenset(row.get("per_client", {}).get(headline([row]), ())), frozenset(row.get("untested", ()))


def evaluations(rows: Iterable[Row]) -> list[Row]:
    """The rows with a test."""
    return [row for row in rows if among(row) is not None]


def share(row: Row) -> str:
    """``2 of 3 clients, without client 1 (not connected)``: who was tested; "" where all were."""
    missing = row.get("untested", {})
    if not missing:
        return ""
    tested = row.get("tested", len(row.get("per_client", {}).get(headline([row]), ())))
    named = [f"client {client} ({why})" for client, why in list(missing.items())[:MOST_NAMED]]
    more = [f"{len(missing) - MOST_NAMED} more"] if len(missing) > MOST_NAMED else []
    return f"{tested} of {row.get('tested_of', tested + len(missing))} clients, without {', '.join(named + more)}"


def remark(row: Row, before: Row | None) -> str:
    """Why the means of `row` are not to be compared with those of others, `before` being the test before; "" if they
    are."""
    parts = [f"tested {some}"] if (some := share(row)) else []
    if before is not None and among(row) is not None and among(before) != among(row):
        parts.append(f"means are over other clients than in round {before['round']}")
    return "; ".join(parts)


def spans(rounds: Iterable[int]) -> str:
    """``3, 5 to 7``."""
    found: list[list[int]] = []
    for round in rounds:
        if found and round == found[-1][-1] + 1:
            found[-1][1:] = [round]
        else:
            found.append([round])
    return ", ".join(" to ".join(map(str, span)) for span in found)


def caution(tests: Sequence[int], clients: int) -> str:
    """What `tests`, the numbers of test examples of so many clients, are too few for; "" where they are not.

    Without any, they are not known here.
    """
    known = [count for count in tests if count]
    clients = len(known) or clients
    worst = max(1, clients // 10)
    parts = []
    if worst <= FEW_CLIENTS:
        each = f", with {min(known)} to {max(known)} test examples each" if known else ""
        parts.append(f"worst10% is {worst} of {clients} clients{each}")
    if known and sum(known) < FEW_EXAMPLES:
        parts.append(f"{sum(known)} test examples in all, so that one is {100 / sum(known):.2g} % of them")
    return f"few to measure by: {'; '.join(parts)}" if parts else ""
