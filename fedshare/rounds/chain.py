"""The digest chain: each round's SHA-256 covers the previous digest, the server's memory and its clients' memories.

Two runs with the same last digest are equal to the bit in every round. A link also holds a digest of each leaf, so
that the first difference between two runs can be located.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field

Leaves = dict[str, str]  # path of a leaf of a state -> SHA-256

START = ""  # the digest before round 1


@dataclass(frozen=True)
class Link:
    round: int
    server: Leaves
    clients: dict[str, Leaves]  # by id, those whose uploads were aggregated
    digest: str
    # Those whose uploads were dropped. A checkpoint must match them, but the round's digest does not cover them: a
    # hostile client can claim any memory, and must not change the digest of the honest clients' run.
    dropped: dict[str, Leaves] = field(default_factory=dict)

    @classmethod
    def extend(
        cls,
        previous: str,
        round: int,
        server: Leaves,
        clients: dict[int, Leaves],
        dropped: Collection[int] = (),
    ) -> "Link":
        """Return the link after `previous`; the digest does not cover the clients in `dropped`."""
        named = {str(client): leaves for client, leaves in sorted(clients.items()) if client not in dropped}
        others = {str(client): leaves for client, leaves in sorted(clients.items()) if client in dropped}
        return cls(round, server, named, _digest(previous, round, server, named), others)

    @property
    def memories(self) -> dict[str, Leaves]:
        """The leaves of all clients that trained in this round."""
        return self.clients | self.dropped

    def follows(self, previous: str) -> bool:
        """Whether the link is intact and follows the digest `previous`."""
        return self.digest == _digest(previous, self.round, self.server, self.clients)

    def to_json(self) -> str:
        entry = asdict(self)
        if not self.dropped:
            del entry["dropped"]
        return json.dumps(entry, separators=(",", ":"))


def _digest(previous: str, round: int, server: Leaves, clients: dict[str, Leaves]) -> str:
    text = json.dumps([previous, round, server, clients], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(a: Leaves, b: Leaves) -> Iterator[str]:
    """Yield the paths whose digests differ, or that only one of the two has."""
    return (path for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path))


def first_difference(a: list[Link], b: list[Link]) -> str | None:
    """Describe the first round, participant and leaf in which two runs differ; None if one continues the other."""
    for mine, other in zip(a, b, strict=False):
        if mine.digest == other.digest:
            continue
        where = f"round {mine.round}"
        # Clients before the server: its memory follows from what they sent.
        for client in sorted(mine.clients.keys() | other.clients.keys(), key=int):
            if path := next(differences(mine.clients.get(client, {}), other.clients.get(client, {})), None):
                return f"{where}: client {client}: {path}"
        if path := next(differences(mine.server, other.server), None):
            return f"{where}: server: {path}"
        return f"{where}: the digests differ though every part is equal: one of the records was changed"
    return None
