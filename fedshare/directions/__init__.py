"""Directions that are never sent: they are computed from a message's sender and number, identically everywhere."""

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
