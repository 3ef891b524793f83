"""A log as a peer follows it: each commit is checked, and a relay that contradicts itself is proven to."""

import json
from collections.abc import Callable
from pathlib import Path

from fedshare.errors import RunHalted
from fedshare.identity.signing import PUBLIC, RUN, SIGNATURE, Verifier
from fedshare.machine.files import private_folder, write_atomically
from fedshare.relay import commits
from fedshare.relay.commits import Commit, Head
from fedshare.relay.entries import SAID, Entry, Kind, admitted
from fedshare.relay.members import Members
from fedshare.relay.position import Position

Checks = Callable[[int, bytes, bytes], str | None]  # peer, key, certificate: why the admission is wrong


class Follower:
    """Follows a log from `position`, or from its beginning. `seen`: the last position that this peer has acted on.

    `checks` judges admissions: over TLS, the certificate must be of the run's authority, and name the peer and the key.
    Proofs against the relay are written to `proofs`. A relay that breaks the chain raises RunHalted.
    """

    def __init__(
        self, run: bytes, position: Position | None, seen: Position | None, checks: Checks, proofs: Path, address: str
    ) -> None:
        self.run, self._checks, self._proofs, self._address = run, checks, proofs, address
        self.members = position.members.copy() if position else Members()
        self.head = position.head if position else Head(-1, commits.start(run), b"")
        self.seen = seen.head if seen else None
        self.key = seen.key if seen else b""
        self._epoch = 0
        for one in (position, seen):
            if one and one.run != run:
                raise RunHalted(f"the followed log is of run {one.run.hex()[:12]}, and this run is {run.hex()[:12]}")

    @property
    def known(self) -> int:
        """How many commits there must be at least."""
        return max(self.head.round, self.seen.round if self.seen else -1) + 1

    @property
    def _last(self) -> Head:
        return self.seen if self.seen and self.seen.round > self.head.round else self.head

    def position(self) -> Position:
        return Position(self.run, self.key, self.head, self.members.copy())

    def welcomed(
        self, key: bytes, rounds: int, head: bytes, status: bytes, known: bytes, known_signed: bytes, nonce: bytes
    ) -> None:
        """Check what a relay says of its log: it must hold what this peer has seen. Raises RunHalted."""
        if len(key) != PUBLIC or len(status) != SIGNATURE or len(head) != 32 or rounds > 2**63:
            raise RunHalted(f"{self._address}: the relay's welcome is malformed")
        if self.key and key != self.key:
            raise RunHalted(f"{self._address}: this is another relay, with another signing key, than that of the log")
        verifier = Verifier(key)
        if not verifier.accepts(commits.status_part(self.run, rounds, head, nonce), status):
            raise RunHalted(f"{self._address}: the relay has not signed its welcome")
        self.key = key
        last = self._last
        if last.round < 0:
            return
        if rounds <= last.round:
            claim = {"rounds": rounds, "head": head.hex(), "nonce": nonce.hex(), "signature": status.hex()}
            path = self._prove(f"rewind-{last.round}", {"seen": _told(last), "status": claim})
            raise RunHalted(
                f"{self._address}: the relay is behind: its log ends with round {rounds - 1}, and this peer has seen "
                f"round {last.round}: an old copy of the log? proof: {path}"
            )
        theirs = Head(last.round, known, known_signed)
        if known != last.head:
            if not theirs.holds(verifier, self.run):
                raise RunHalted(f"{self._address}: the relay has not signed its head of round {last.round}")
            raise self._forked(theirs)

    def take(self, round: int, data: bytes | bytearray) -> Commit:
        """Return the next commit, from its bytes on the wire. Raises RunHalted."""
        where = f"{self._address}: round {round}"
        if round != self.head.round + 1:
            raise RunHalted(f"{where}: the relay reorders its log: round {self.head.round + 1} comes next")
        try:
            commit = Commit.unpack(memoryview(data)[SIGNATURE:].tobytes())
            if commit.round != round:
                raise ValueError(f"it says that it is round {commit.round}")
            head = Head(round, commit.head(self.head.head), bytes(data[:SIGNATURE]))
            if not head.holds(Verifier(self.key), self.run):
                raise ValueError("the relay has not signed it, after the commits before it")
            self._check(commit)
            self.members.apply(commit)
        except ValueError as error:
            raise RunHalted(f"{where}: the relay sent a bad commit: {error}") from error
        if self.seen and round == self.seen.round and head.head != self.seen.head:
            raise self._forked(head)
        self.head = head
        return commit

    def _check(self, commit: Commit) -> None:
        """Raises ValueError."""
        if commit.epoch < self._epoch:
            raise ValueError(f"its epoch is {commit.epoch}, after {self._epoch}")
        self._epoch = commit.epoch
        if commit.round == 0 and (
            not commit.entries
            or commit.entries[0].kind != Kind.MANIFEST
            or commit.entries[0].body != self.run[:RUN] + self.key
        ):
            raise ValueError("it does not begin with this run's manifest")
        spoke, last = set[int](), dict[int, int]()
        for place, entry in enumerate(commit.entries):
            if entry.kind in SAID:
                self._check_said(entry, commit.round, last)
                if entry.kind == Kind.MESSAGE and entry.peer in spoke:
                    raise ValueError(f"it holds two messages of peer {entry.peer}")
                spoke |= {entry.peer} if entry.kind == Kind.MESSAGE else set()
            elif entry.kind == Kind.ADMIT:
                peer, key, certificate = admitted(entry)
                if why := self._checks(peer, key, certificate):
                    raise ValueError(f"it admits peer {peer}, but {why}")
            elif entry.kind == Kind.MANIFEST and (commit.round or place):
                raise ValueError("it holds a second manifest")
            elif entry.kind not in (Kind.MANIFEST, Kind.REMOVE, Kind.FENCE):
                raise ValueError(f"it holds an entry of kind {entry.kind}")

    def _check_said(self, entry: Entry, round: int, last: dict[int, int]) -> None:
        member = self.members.all.get(entry.peer)
        if member is None or member.removed:
            raise ValueError(f"it holds an entry of peer {entry.peer}, who is no member")
        if entry.round != round or entry.number <= last.get(entry.peer, member.said):
            raise ValueError(f"entry {entry.number} of peer {entry.peer} is out of place")
        last[entry.peer] = entry.number
        if not Verifier(bytes.fromhex(member.key)).accepts(entry.signed(self.run, self.head.head), entry.signature):
            raise ValueError(f"peer {entry.peer} has not signed its entry {entry.number} for this log")

    def _forked(self, theirs: Head) -> RunHalted:
        path = self._prove(f"fork-{theirs.round}", {"seen": _told(self._last), "other": _told(theirs)})
        return RunHalted(
            f"{self._address}: the relay has forked its log: it has signed two heads of round {theirs.round}; "
            f"proof: {path}"
        )

    def _prove(self, name: str, said: dict[str, object]) -> Path:
        private_folder(self._proofs)
        path = self._proofs / f"relay-{name}.json"
        write_atomically(path, json.dumps({"run": self.run.hex(), "relay": self.key.hex()} | said, indent=1))
        return path


def _told(head: Head) -> dict[str, object]:
    return {"round": head.round, "head": head.head.hex(), "signature": head.signature.hex()}
