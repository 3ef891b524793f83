"""Clients that come and go at random."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache, partial

import torch

from fedshare import seeds
from fedshare.errors import UserError
from fedshare.links.attendance import Attendance, Event, What
from fedshare.links.links import Links
from fedshare.network import Network


@dataclass(frozen=True, kw_only=True)
class Churn(Links):
    """Each client leaves, crashes and rejoins with the same probabilities, drawn by the seed."""

    leave: float = 0.05  # the probability that a client leaves, in each round in which it is there
    crash: float = 0.0  # the same for a crash, which loses the client's work of the round
    rejoin: float = 0.25  # the probability that a client comes back, in each round in which it is away
    late: float = 0.0  # the share of the clients that join later,
    joined_by: int = 10  # in a round from 2 to this one

    def __post_init__(self) -> None:
        for name in ("leave", "crash", "rejoin", "late"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"{name}={value}: must be from 0 to 1")
        if self.leave + self.crash > 1:
            raise UserError(f"leave={self.leave} crash={self.crash}: their sum must be at most 1")
        if self.joined_by < 2:
            raise UserError(f"joined_by={self.joined_by}: must be at least 2")

    def around(self, network: Network, clients: int, seed: int, start: int) -> Network:
        events, joins = partial(self.events, clients, seed), _joins(self.late, self.joined_by, clients, seed)
        return Attendance(network, events, joins.keys(), start)

    def events(self, clients: int, seed: int, round: int, away: AbstractSet[int]) -> list[Event]:
        """Return the events of a round in client order, given who is away before it."""
        joins = _joins(self.late, self.joined_by, clients, seed)
        draws = torch.rand(clients, generator=seeds.generator(seed, "churn", round), dtype=torch.float64)
        some = draws < max(self.leave + self.crash, self.rejoin)
        some[[client for client, joined in joins.items() if joined == round]] = True
        found = []
        for client, draw in zip(some.nonzero().flatten().tolist(), draws[some].tolist(), strict=True):
            if what := self._what(round, joins.get(client, 0), client in away, draw):
                found.append(Event(round, client, what))
        return found

    def _what(self, round: int, joined: int, away: bool, draw: float) -> What | None:
        if round <= joined:
            return "join" if round == joined else None
        if away:
            return "rejoin" if draw < self.rejoin else None
        return "leave" if draw < self.leave else "crash" if draw < self.leave + self.crash else None


@cache
def _joins(late: float, by: int, clients: int, seed: int) -> Mapping[int, int]:
    """Return the round in which each late client joins."""
    draw = seeds.generator(seed, "churn", "late")
    some = torch.randperm(clients, generator=draw)[: round(late * clients)]
    rounds = torch.randint(2, by + 1, (len(some),), generator=draw)
    return dict(sorted(zip(some.tolist(), rounds.tolist(), strict=True)))
