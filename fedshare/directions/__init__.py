"""Directions that need no sending: they follow from who sends what message, and are the same bits everywhere."""

from fedshare.directions.message import (
    BLOCK,
    LIMIT,
    PROBES,
    SIGNS,
    Entry,
    Origin,
    accumulate,
    blocks,
    byte_table,
    check_range,
    compiled,
    fill,
    over,
    random_bytes,
    signs,
)

__all__ = [
    "BLOCK",
    "LIMIT",
    "PROBES",
    "SIGNS",
    "Entry",
    "Origin",
    "accumulate",
    "blocks",
    "byte_table",
    "check_range",
    "compiled",
    "fill",
    "over",
    "random_bytes",
    "signs",
]
