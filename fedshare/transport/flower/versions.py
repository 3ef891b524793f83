"""The memories that clients keep themselves: a server knows after which round each last had one."""

from fedshare.state import State
from fedshare.transport.suspension import Suspensions


class Versions:
    remote = True

    def __init__(self, suspensions: Suspensions) -> None:
        self.versions: dict[int, int] = {}  # by client: the round after which we last heard of its memory
        self.oldest = 0  # the round of the oldest checkpoint
        self.suspensions = suspensions
        self.round = 0  # the last

    def heard(self, round: int, memories: dict[int, dict[str, str]]) -> None:
        self.versions |= {client: round if leaves else 0 for client, leaves in memories.items()}

    def remember(self) -> dict[int, State]:
        self.suspensions.begin(self.round + 1)  # the one that is over counts
        held = self.suspensions.remember()
        known = sorted(self.versions.keys() | held.keys())
        return {client: {"round": self.versions.get(client, 0)} | held.get(client, {}) for client in known}

    def recall(self, memories: dict[int, State], round: int) -> None:
        self.versions = {client: memory["round"] for client, memory in memories.items()}
        self.suspensions.recall(memories)
        self.round = round

    def keep(self, round: int) -> None:
        self.oldest = round
