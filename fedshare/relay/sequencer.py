"""What a relay takes in, and when a round is over: a state machine without storage, clock or network."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from fedshare.identity.signing import PUBLIC, RUN, SIGNATURE, Verifier
from fedshare.relay import entries, proofs
from fedshare.relay.commits import Commit
from fedshare.relay.entries import LARGEST, MOST_PEERS, RELAY, SAID, Entry, Kind
from fedshare.relay.members import Members

MOST = 8  # entries of one peer in one round


@dataclass(frozen=True)
class Settings:
    """When a relay ends a round, and what it takes."""

    round_seconds: float = 60.0  # after a round's first message, it ends without those who are missing
    min_peers: int = 2  # who must have said something, at least
    peers: int = 0  # how many must have come before round 1; 0: as many as `min_peers`
    message: int = 16 << 20  # bytes of a message
    pending: int = 1 << 30  # bytes of all messages of a round


class Status(Enum):
    TAKEN = "taken"  # new, and in the log when its transaction ends
    KNOWN = "known"  # the same was said before
    LATE = "late"  # for a round that is over
    REFUSED = "refused"  # wrong, now and later
    FULL = "full"  # not now
    TWO_THINGS = "two things"  # said under one number


@dataclass(frozen=True)
class Verdict:
    status: Status
    why: str = ""


Said = Callable[[int, int], tuple[int, int, bytes, bytes] | None]  # `Store.said`
Heads = Callable[[int], bytes]  # by round: the head after it


@lru_cache(MOST_PEERS)
def _verifier(key: str) -> Verifier:
    return Verifier(bytes.fromhex(key))


class Sequencer:
    """The open round of a log. `heads` and `said` look up what is committed."""

    def __init__(self, run: bytes, members: Members, settings: Settings, heads: Heads, said: Said) -> None:
        self.run, self.members, self.settings = run, members, settings
        self._heads, self._said = heads, said
        self.pending: list[Entry] = []
        self._by_number = dict[tuple[int, int], Entry]()
        self._last = dict[int, int]()  # by peer: the highest number, of pending entries
        self.noted = 0  # the number of the relay's last entry
        self._bytes = 0

    @property
    def round(self) -> int:
        """The open round."""
        return self.members.round + 1

    def restore(self, pending: Iterable[Entry], noted: int) -> None:
        """Begin again with the entries that are stored and that no commit holds."""
        self.pending, self._by_number, self._last, self._bytes, self.noted = [], {}, {}, 0, noted
        if self.round == 0:
            self.run = b""
        for entry in pending:
            self.put(entry)

    def put(self, entry: Entry) -> None:
        self.pending.append(entry)
        self._by_number[entry.peer, entry.number] = entry
        self._last[entry.peer] = max(self._last.get(entry.peer, 0), entry.number)
        self._bytes += len(entry.body)
        if entry.peer == RELAY:
            self.noted = max(self.noted, entry.number)
        if entry.kind == Kind.MANIFEST:
            self.run = entry.body[:RUN]

    def check(self, entry: Entry) -> Verdict:
        """Return what becomes of a peer's entry; whoever calls this puts those that are taken."""
        if flaw := self._flaw(entry):
            return Verdict(Status.REFUSED, flaw)
        member = self.members.all[entry.peer]
        if entry.number <= max(member.said, self._last.get(entry.peer, 0)):
            return self._again(entry)
        if entry.round != self.round:
            if entry.round < self.round:
                return Verdict(Status.LATE, f"round {entry.round} is over; round {self.round} is open")
            return Verdict(Status.REFUSED, f"it is for round {entry.round}, and the log is at round {self.round}")
        mine = [one for one in self.pending if one.peer == entry.peer]
        if entry.kind == Kind.MESSAGE and any(one.kind == Kind.MESSAGE for one in mine):
            return Verdict(Status.REFUSED, f"a second message of peer {entry.peer} in round {entry.round}")
        if len(mine) >= MOST:
            return Verdict(Status.REFUSED, f"more than {MOST} entries of peer {entry.peer} in round {entry.round}")
        if self._bytes + len(entry.body) > self.settings.pending:
            return Verdict(Status.FULL, f"the messages of round {self.round} take {self._bytes} bytes")
        if not self._signed(entry):
            return Verdict(Status.REFUSED, "its signature is not its peer's, for this log and what came before")
        return Verdict(Status.TAKEN)

    def _flaw(self, entry: Entry) -> str | None:
        member = self.members.all.get(entry.peer)
        if member is None:
            return f"peer {entry.peer} is not admitted"
        if member.removed:
            return f"peer {entry.peer} was removed: {member.removed}"
        if member.left:
            return f"peer {entry.peer} has left"
        if entry.kind not in SAID:
            return f"an entry of kind {entry.kind}: a peer says {', '.join(str(int(kind)) for kind in SAID)}"
        if not 1 <= entry.number <= LARGEST or not 1 <= entry.round <= LARGEST:
            return f"number and round must be 1 to 2^63 - 1, not {entry.number} and {entry.round}"
        size = {Kind.LEAVE: 0, Kind.ATTEST: 32}.get(Kind(entry.kind))
        if size is not None and len(entry.body) != size:
            return f"a body of {len(entry.body)} bytes, where {size} are allowed"
        if len(entry.body) > self.settings.message:
            return f"a message of {len(entry.body)} bytes; at most {self.settings.message} are taken"
        return None if len(entry.signature) == SIGNATURE else f"a signature of {len(entry.signature)} bytes"

    def _signed(self, entry: Entry) -> bool:
        verifier = _verifier(self.members.all[entry.peer].key)
        return verifier.accepts(entry.signed(self.run, self._heads(entry.round - 1)), entry.signature)

    def _again(self, entry: Entry) -> Verdict:
        """Judge an entry whose number is not new."""
        digest = hashlib.sha256(entry.body).digest()
        if found := self._by_number.get((entry.peer, entry.number)):
            before = (found.kind, found.round, hashlib.sha256(found.body).digest(), found.signature)
        elif stored := self._said(entry.peer, entry.number):
            before = stored
        else:
            last = max(self.members.all[entry.peer].said, self._last.get(entry.peer, 0))
            return Verdict(Status.REFUSED, f"number {entry.number} was skipped; the last one is {last}")
        if before[:3] == (entry.kind, entry.round, digest):
            return Verdict(Status.KNOWN)
        if not 1 <= entry.round <= self.round or not self._signed(entry):
            return Verdict(Status.REFUSED, f"number {entry.number} was said before, and this is not signed")
        return Verdict(Status.TWO_THINGS, f"peer {entry.peer} has said two things under number {entry.number}")

    # The relay's own entries; whoever calls these puts them.

    def admission(self, peer: int, key: bytes, certificate: bytes) -> Entry | None:
        """Return the entry that admits a peer; None if it is admitted, or will be. Raises ValueError with why not."""
        assert len(key) == PUBLIC
        member = self.members.all.get(peer)
        if member and member.removed:
            raise ValueError(f"it was removed: {member.removed}")
        for one in self.pending:
            if one.kind == Kind.ADMIT and entries.admitted(one)[:2] == (peer, key):
                return None
        if member and not member.left and member.key == key.hex():
            return None
        return entries.admit(self.noted + 1, self.round, peer, key, certificate)

    def removal(self, peer: int, reason: str, other: Entry | None = None) -> Entry | None:
        """Return the entry that removes a peer; None if it is removed, or will be.

        `other`: what it said under a number under which it had said something else.
        """
        member = self.members.all.get(peer)
        gone = any(one.kind == Kind.REMOVE and entries.removed(one)[0] == peer for one in self.pending)
        if member is None or member.removed or gone:
            return None
        proof = proofs.two_things(self._first(other), self._stated(other)) if other else b""
        return entries.remove(self.noted + 1, self.round, peer, reason, proof)

    def _stated(self, entry: Entry) -> proofs.Statement:
        digest, head = hashlib.sha256(entry.body).digest(), self._heads(entry.round - 1)
        return proofs.Statement(entry.kind, entry.peer, entry.number, entry.round, head, digest, entry.signature)

    def _first(self, other: Entry) -> proofs.Statement:
        if found := self._by_number.get((other.peer, other.number)):
            return self._stated(found)
        stored = self._said(other.peer, other.number)
        assert stored is not None
        kind, round, digest, signature = stored
        head = self._heads(round - 1)
        return proofs.Statement(kind, other.peer, other.number, round, head, digest, signature)

    # The end of a round.

    def missing(self) -> list[int]:
        """Return the peers that the open round waits for, sorted."""
        done = {one.peer for one in self.pending if one.kind in (Kind.MESSAGE, Kind.LEAVE)}
        done |= {entries.removed(one)[0] for one in self.pending if one.kind == Kind.REMOVE}
        return [peer for peer in self.members.awaited() if peer not in done]

    def present(self) -> int:
        """Return how many have said something in the open round."""
        return sum(one.kind == Kind.MESSAGE for one in self.pending)

    def complete(self, late: bool) -> bool:
        """Whether the round is over; `late`: its time is."""
        kinds = [one.kind for one in self.pending]
        if self.round == 0:
            wanted = self.settings.peers or self.settings.min_peers
            return bool(self.run) and kinds.count(Kind.ADMIT) >= wanted
        enough = self.present() >= self.settings.min_peers
        if self.missing():
            return late and enough
        # With too few peers a round is over when others join, or when nobody is left in it.
        gone = not self.present() and (Kind.LEAVE in kinds or Kind.REMOVE in kinds)
        return enough or Kind.ADMIT in kinds or gone

    def waits_for(self) -> str:
        """Return what the open round waits for, in words."""
        if self.round == 0:
            came = sum(one.kind == Kind.ADMIT for one in self.pending)
            return f"round 1 waits for peers: {came} of {self.settings.peers or self.settings.min_peers} have come"
        if missing := self.missing():
            named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            return f"round {self.round} waits for peer{'s' * (len(missing) > 1)} {named}"
        return f"round {self.round} waits for more peers: {self.present()} of at least {self.settings.min_peers}"

    def closing(self, epoch: int) -> Commit:
        return Commit(self.round, epoch, tuple(self.pending))

    def closed(self, commit: Commit) -> None:
        """Open the next round. Call this when the commit is stored."""
        self.members.apply(commit)
        self.restore([], self.noted)
