"""Who takes part, as the commits of a log say: the same for the relay and for every peer that follows it."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedshare.relay.commits import Commit
from fedshare.relay.entries import SAID, Entry, Kind, admitted, removed

MISSED = 3  # rounds in a row without a message, after which a peer is no longer waited for


@dataclass(frozen=True)
class Member:
    """A peer that was admitted. `said`: the number of its last entry."""

    key: str  # its public signing key, in hex
    certificate: str  # as it was shown, or ""
    admitted: int  # by the commit of this round: it takes part from the next
    said: int = 0
    missed: int = 0  # rounds in a row without a message
    here: bool = True  # whether it takes part in the next round
    left: bool = False
    removed: str = ""  # why

    @property
    def awaited(self) -> bool:
        return not self.left and not self.removed and self.missed < MISSED


class Members:
    """All peers of a log. The last commit that was applied is that of `round`; -1: none."""

    def __init__(self) -> None:
        self.round = -1
        self.all: dict[int, Member] = {}

    def ids(self) -> list[int]:
        """Return the peers that take part in the next round, sorted: without those that missed the last one."""
        return sorted(peer for peer, one in self.all.items() if one.here)

    def awaited(self) -> list[int]:
        """Return the peers that the next round waits for, sorted."""
        return sorted(peer for peer, one in self.all.items() if one.awaited)

    def apply(self, commit: Commit) -> None:
        """Raises ValueError if the commit's own entries are malformed."""
        spoke = set[int]()
        for entry in commit.entries:
            if entry.kind == Kind.ADMIT:
                peer, key, certificate = admitted(entry)
                said = self.all[peer].said if peer in self.all else 0
                self.all[peer] = Member(key.hex(), certificate.decode(errors="replace"), commit.round, said)
                spoke.add(peer)
            elif entry.kind == Kind.REMOVE:
                peer, reason, _ = removed(entry)
                if peer in self.all:
                    self.all[peer] = replace(self.all[peer], removed=reason or "removed")
            elif entry.kind in SAID:
                if entry.peer not in self.all:
                    raise ValueError(f"an entry of peer {entry.peer}, who was not admitted")
                self.all[entry.peer] = _after(self.all[entry.peer], entry)
                if entry.kind == Kind.MESSAGE:
                    spoke.add(entry.peer)
        for peer, one in self.all.items():
            missed = 0 if peer in spoke else one.missed + 1
            here = peer in spoke and not one.left and not one.removed
            self.all[peer] = replace(one, missed=missed, here=here)
        self.round = commit.round

    def copy(self) -> "Members":
        made = Members()
        made.round, made.all = self.round, dict(self.all)
        return made

    def pack(self) -> bytes:
        """Return all of it, the same bytes for every peer."""
        members = {str(peer): asdict(one) for peer, one in sorted(self.all.items())}
        return json.dumps({"round": self.round, "members": members}, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, data: bytes) -> "Members":
        """Raises ValueError."""
        try:
            found: Any = json.loads(data)
            made = cls()
            made.round = int(found["round"])
            made.all = {int(peer): Member(**one) for peer, one in found["members"].items()}
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no list of members: {error}") from error
        return made


def _after(member: Member, entry: Entry) -> Member:
    left = member.left or entry.kind == Kind.LEAVE
    return replace(member, said=max(member.said, entry.number), left=left)


def uploads(commit: Commit, ids: Iterable[int]) -> dict[int, bytes]:
    """Return what those who took part said for the commit's round, by peer, sorted; without empty messages."""
    took = set(ids)
    found = {
        one.peer: one.body
        for one in commit.entries
        if one.kind == Kind.MESSAGE and one.round == commit.round and one.peer in took and one.body
    }
    return dict(sorted(found.items()))
