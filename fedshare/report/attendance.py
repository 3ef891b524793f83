"""The table of participants that is printed before the first round: one line per client."""

from collections.abc import Iterable
from typing import Protocol

from fedshare.errors import NAME, brief


class Attending(Protocol):
    client: int
    host: str
    device: str
    examples: int


def attendance_table(attending: Iterable[Attending]) -> str:
    rows = [("client", "host", "device", "examples")]
    rows += [
        (str(one.client), brief(one.host, NAME), brief(one.device, NAME), f"{one.examples:,}")
        for one in sorted(attending, key=lambda one: one.client)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    )
