"""Clients that come and go as a file says: JSON Lines, documented in docs/links.md."""

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fedshare.errors import UserError, brief, first_line
from fedshare.links.attendance import Attendance, Event, What
from fedshare.links.links import Links
from fedshare.network import Network

KEYS = ("round", "client", "event")
THEN: dict[str, Collection[str]] = {  # what may happen to a client after what happened last
    "": ("join", "leave", "crash"),
    "join": ("leave", "crash"),
    "rejoin": ("leave", "crash"),
    "leave": ("rejoin",),
    "crash": ("rejoin",),
}


@dataclass(frozen=True, kw_only=True)
class File(Links):
    path: str | None = None  # of the file; required

    def check(self, clients: int) -> None:
        self.events(clients)

    def around(self, network: Network, clients: int, seed: int, start: int) -> Network:
        by_round, late = defaultdict[int, list[Event]](list), list[int]()
        for event in self.events(clients):
            by_round[event.round].append(event)
            late += [event.client] * (event.what == "join")
        return Attendance(network, lambda round, away: by_round.get(round, []), late, start)

    def events(self, clients: int) -> list[Event]:
        """Return the file's events, by round and client. Raises UserError if they do not fit so many clients."""
        if self.path is None:
            raise UserError("links.path: required: the file of the events")
        try:
            lines = Path(self.path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"links.path={self.path}: cannot be read: {first_line(error)}") from error
        found = list[tuple[Event, int]]()
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    found.append((_event(line, clients), number))
                except ValueError as error:
                    raise UserError(f"{self.path}: line {number}: {error}") from error
        found.sort(key=lambda one: (one[0].round, one[0].client))
        last = dict[int, Event]()
        for event, number in found:
            if wrong := _misfit(event, last.get(event.client)):
                raise UserError(f"{self.path}: line {number}: client {event.client} {wrong}")
            last[event.client] = event
        return [event for event, _ in found]


def _event(line: str, clients: int) -> Event:
    """Return the event in a line. Raises ValueError with what is wrong and what is allowed."""
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {brief(line, 40)}") from error
    if not isinstance(said, dict) or said.keys() != set(KEYS):
        raise ValueError(
            f'must be {{"round": 3, "client": 2, "event": "leave"}}, with these keys, not {brief(line, 80)}'
        )
    for key, least, most in (("round", 1, None), ("client", 0, clients - 1)):
        value = said[key]
        if type(value) is not int or value < least or (most is not None and value > most):
            allowed = f"an integer from {least}" + ("" if most is None else f" to {most}")
            raise ValueError(f"{key} {brief(json.dumps(value), 40)}: must be {allowed}")
    if said["event"] not in get_args(What):
        raise ValueError(f"event {brief(json.dumps(said['event']), 40)}: must be one of {', '.join(get_args(What))}")
    return Event(said["round"], said["client"], said["event"])


def _misfit(event: Event, before: Event | None) -> str | None:
    """Return why an event cannot follow the client's event before it; None if it can."""
    if before is not None and before.round == event.round:
        return f"has two events in round {event.round}; one is allowed"
    if event.what in (allowed := THEN[before.what if before else ""]):
        return None
    after = f"its {before.what} in round {before.round}" if before else "being there from the start"
    return f"cannot {event.what} in round {event.round}, after {after}; allowed: {', '.join(allowed)}"
