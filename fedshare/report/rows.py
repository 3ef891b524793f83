"""What a row of ``metrics.jsonl`` says it is about. Rows of older runs say nothing: they are about accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def headline(rows: Sequence[Row]) -> str:
    """The metric by which clients are compared."""
    return next((str(row["headline"]) for row in rows if "headline" in row), "accuracy")


def higher(rows: Sequence[Row]) -> bool:
    """Whether more of it is better."""
    return next((row["better"] == "higher" for row in rows if "better" in row), True)
