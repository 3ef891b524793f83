"""Clients that keep a run waiting are left out for a while: for 1 round, then 2, 4, 8, ... as long as they stay silent.

Counted in rounds, not in seconds, and in the order of clients: what is decided depends on nothing but who answered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from fedshare.state import State

LONGEST = 16  # rounds of a pause


@dataclass
class _Record:
    missed: int = 0  # rounds in a row, of those in which it was asked
    pause: int = 0  # rounds, the last
    again: int = 0  # the round in which it is asked again
    why: str = ""  # what was wrong the last time


class Suspensions:
    """A client that missed `after` rounds in a row is suspended; None: nobody ever is.

    A round is missed if any of its messages was: who trains and never lets itself be tested keeps the others waiting,
    too. A round in which everything was answered in time ends all that is held against a client.
    """

    def __init__(self, after: int | None = None, longest: int = LONGEST) -> None:
        self._after, self._longest = after, longest
        self._records: dict[int, _Record] = {}
        self._answered, self._missed = set[int](), dict[int, str]()  # in the round under way

    def heard(self, answered: Iterable[int], missed: Mapping[int, str]) -> None:
        """An exchange is over; there may be several in a round. Who is in neither was not waited for."""
        self._answered |= set(answered)
        self._missed |= missed

    def begin(self, round: int) -> dict[int, str]:
        """What was heard until now is of the rounds before `round`, which begins: who sits it out, and why."""
        for client, why in self._missed.items():
            record = self._records.setdefault(client, _Record())
            record.missed, record.why = record.missed + 1, why
            if self._after is not None and record.missed >= self._after:
                record.pause = min(2 * record.pause or 1, self._longest)
                record.again = round + record.pause
        for client in self._answered - self._missed.keys():
            self._records.pop(client, None)
        self._answered, self._missed = set(), {}
        return {client: _reason(record) for client, record in sorted(self._records.items()) if record.again > round}

    def remember(self) -> dict[int, State]:
        """What is held against each client: nothing against most."""
        return {client: asdict(record) for client, record in self._records.items()}

    def recall(self, memories: Mapping[int, State]) -> None:
        """Go on from what `remember` gave; other keys are somebody else's."""
        names = _Record.__dataclass_fields__
        self._records = {
            client: _Record(**{name: memory[name] for name in names})
            for client, memory in memories.items()
            if memory.keys() >= names.keys()
        }
        self._answered, self._missed = set(), {}


def _reason(record: _Record) -> str:
    count = f"{record.missed} round{'s' * (record.missed > 1)}"
    return f"missed {count} in a row ({record.why}); asked again in round {record.again}"
