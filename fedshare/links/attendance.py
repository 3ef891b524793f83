"""A network whose clients join, leave, crash and rejoin."""

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

from fedshare.network import Exchange, Heard, Memories, Network, NotAwaited, Purpose, Quotas
from fedshare.payload import Payload

What = Literal["join", "leave", "crash", "rejoin"]


@dataclass(frozen=True)
class Event:
    """What happens to a client in a round.

    A client that joins or rejoins takes part from this round on, and one that leaves does not. A client that crashes
    may be sampled in this round, but does not answer, and is away from the next round on.
    """

    round: int  # from 1
    client: int
    what: What


Drawn = Callable[[int, AbstractSet[int]], list[Event]]  # the events of a round, given who is away before it


class Attendance:
    """A `Network` in which clients are away as `events` say; `late` ones are away until they join.

    A crash loses the client's work of the round: its memory stays as it was, and it is dropped, which halts no run. It
    is not tested in that round, either. `exchange` is called for the rounds after `start`, in order.
    """

    def __init__(self, network: Network, events: Drawn, late: Collection[int] = (), start: int = 0) -> None:
        self._network, self._drawn = network, events
        self._away, self._crashed, self._events = set(late), set[int](), dict[str, list[int]]()
        self._round = 0  # whose events have happened
        self._here: tuple[list[int], set[int], list[int]] = ([], set(), [])  # of these, without those who are away
        self._enter(start)
        self._coming = start + 1

    @property
    def memories(self) -> Memories:
        return self._network.memories

    def client_ids(self) -> list[int]:
        self._enter(self._coming)
        everyone = self._network.client_ids()
        of, without, here = self._here
        if everyone is not of or self._away != without:
            here = [client for client in everyone if client not in self._away] if self._away else everyone
            self._here = everyone, set(self._away), here
        return here

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        crashed = sorted(self._crashed & downloads.keys()) if round == self._round else []  # a test may come before it
        reached = {client: download for client, download in downloads.items() if client not in crashed}
        exchange = self._network.exchange(purpose, round, reached, quotas, heard)
        absent = dict(sorted((exchange.absent | dict.fromkeys(crashed, NotAwaited("crashed"))).items()))
        if purpose is not Purpose.TRAIN:
            return replace(exchange, absent=absent)
        self._coming = round + 1
        return replace(exchange, absent=absent, events=self._events)

    def _enter(self, round: int) -> None:
        """Let the events happen up to those of `round`."""
        while self._round < round:
            self._round += 1
            self._away |= self._crashed
            self._crashed, self._events = set(), {}
            for event in self._drawn(self._round, self._away):
                self._events.setdefault(event.what, []).append(event.client)
                if event.what == "crash":
                    self._crashed.add(event.client)
                elif event.what == "leave":
                    self._away.add(event.client)
                else:
                    self._away.discard(event.client)
