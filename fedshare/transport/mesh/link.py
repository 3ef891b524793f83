"""One link of a peer: in which rounds it is open, what was sent on it, and what has come."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedshare._proto.mesh_pb2 import MeshFrame

STEPS = 1 << 16  # in a round
NEVER = 1 << 47  # later than any round


def number_of(round: int, step: int) -> int:
    return round * STEPS + step


@dataclass
class Link:
    """`since`, `until` and `next` are rounds. Both ends know the same, or compare them when they meet."""

    peer: int
    since: int = 0  # it is open from this round on; 0: it is not
    until: int = NEVER  # the last round in which it is open
    next: int = 0  # it will be open from this round on; 0: none was agreed
    offered: int = 0  # what this end has proposed, while it awaits the answer
    connected: bool = False
    begun: bool = False  # whether the neighbour takes part; else it is about to join
    entered: int = 0  # the neighbour's round, as far as is known
    left: bool = False  # the neighbour has said that `until` is its last round
    finished: bool = False  # the neighbour needs no messages of this end's last round any more
    lacks: int = 0  # the number of the first message that has not come
    arrived: dict[int, bytes] = field(default_factory=dict)  # messages by number
    sent: dict[int, bytes] = field(default_factory=dict)  # of this round and the one before, by number, in order
    outbox: deque[MeshFrame] = field(default_factory=deque)  # frames that go before messages

    def open_in(self, round: int) -> bool:
        return bool(self.since and self.since <= round <= self.until) or bool(self.next and round >= self.next)

    def opened(self) -> list[int]:
        """The rounds from which it is or will be open, as a greeting says."""
        return [round for round in (self.since, self.next) if round]

    def end(self, round: int) -> None:
        """Let `round` be the last one in which it is open, until it opens again."""
        if self.since:
            self.until = min(self.until, round)
        if self.since > self.until:
            self.since, self.until = 0, NEVER
            self.sent.clear()

    def compare(self, theirs: Sequence[int], until: int, round: int) -> None:
        """Close, from `round` on, what the other end does not know as open; the first that it knows, after `until`."""
        if self.next and self.next not in theirs:
            self.next = 0
        if self.since and self.since not in theirs:
            self.end(round - 1)
        elif self.since and self.since == theirs[0]:
            self.end(until)

    def begin(self, round: int, before: int) -> None:
        """Go from the round `before` to `round`."""
        if self.next == round:
            self.since, self.until, self.next = round, NEVER, 0
            self.lacks = number_of(round, 0)
            self.sent.clear()
        elif self.next < round:
            self.next = 0
        if round > before + 1 and self.since < round:
            self.end(before)
        if self.since and self.until < round:
            self.end(0)
        self.arrived = {number: data for number, data in self.arrived.items() if number >= number_of(round, 0)}
        self.sent = {number: data for number, data in self.sent.items() if number >= number_of(round - 1, 0)}

    def forget(self, number: int) -> None:
        """Drop what has arrived up to the message `number`: its step is over."""
        for passed in [one for one in self.arrived if one <= number]:
            del self.arrived[passed]
