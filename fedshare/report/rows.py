"""Reading rows of ``metrics.jsonl``. Rows of older runs name no headline metric: theirs is accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
MARK = "!"  # follows a number whose set of clients differs from that of its neighbours
MOST_NAMED = 3  # clients in a line
FEW_CLIENTS, FEW_EXAMPLES = 2, 100  # in the worst tenth; in all tests: fewer, and one example is over a hundredth


def headline(rows: Sequence[Row]) -> str:
    """Return the metric by which clients are compared."""
    return next((str(row["headline"]) for row in rows if "headline" in row), "accuracy")


def higher(rows: Sequence[Row]) -> bool:
    """Whether higher is better."""
    return next((row["better"] == "higher" for row in rows if "better" in row), True)


def among(row: Row) -> tuple[frozenset[str], frozenset[str]] | None:
    """Return the clients that a row's means are over, and the untested ones; None if no test was made."""
    if "untested" not in row and "per_client" not in row:
        return None
    return frozenset(row.get("per_client", {}).get(headline([row]), ())), frozenset(row.get("untested", ()))


def evaluations(rows: Iterable[Row]) -> list[Row]:
    """The rows with a test."""
    return [row for row in rows if among(row) is not None]


def share(row: Row) -> str:
    """Return who was tested: ``2 of 3 clients, without client 1 (not connected)``; "" if all were."""
    missing = row.get("untested", {})
    if not missing:
        return ""
    tested = row.get("tested", len(row.get("per_client", {}).get(headline([row]), ())))
    named = [f"client {client} ({why})" for client, why in list(missing.items())[:MOST_NAMED]]
    more = [f"{len(missing) - MOST_NAMED} more"] if len(missing) > MOST_NAMED else []
    return f"{tested} of {row.get('tested_of', tested + len(missing))} clients, without {', '.join(named + more)}"


def remark(row: Row, before: Row | None) -> str:
    """Return why the means of `row` are not comparable with those of the test `before` or of other runs; "" if they
    are."""
    parts = [f"tested {some}"] if (some := share(row)) else []
    if before is not None and among(row) is not None and among(before) != among(row):
        parts.append(f"means are over other clients than in round {before['round']}")
    return "; ".join(parts)


def spans(rounds: Iterable[int]) -> str:
    """Format rounds as ``3, 5 to 7``."""
    found: list[list[int]] = []
    for round in rounds:
        if found and round == found[-1][-1] + 1:
            found[-1][1:] = [round]
        else:
            found.append([round])
    return ", ".join(" to ".join(map(str, span)) for span in found)


def caution(tests: Sequence[int], clients: int) -> str:
    """Return what the test set sizes `tests` are too small for; "" if they suffice.

    If there are none, the sizes are unknown here.
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
