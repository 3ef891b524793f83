"""A log and its peers in this process, for tests of the relay."""

import threading
from collections.abc import Callable
from pathlib import Path

from fedshare.identity.signing import Signer
from fedshare.relay import commits
from fedshare.relay.commits import Commit, Head
from fedshare.relay.database import SQLite
from fedshare.relay.entries import Entry, Kind
from fedshare.relay.keeper import Keeper
from fedshare.relay.sequencer import Settings, Verdict
from fedshare.relay.store import Store
from world import PATIENCE

relayed_patience = 15
RUN = bytes(range(32))


class Log:
    """A keeper on SQLite in `folder`, with peers who sign without TLS."""

    def __init__(self, folder: Path, store: Store | None = None, **settings: float) -> None:
        defaults = {"min_peers": 2, "round_seconds": 3600.0}
        self.store = store or Store(SQLite(folder / "log.db"))
        self.said: list[str] = []
        self.full: str | None = None
        wanted = Settings(**(defaults | settings))  # type: ignore[arg-type]
        self.keeper = Keeper(self.store, Signer.unprotected("relay"), wanted, lambda: self.full, self.said.append)
        self.heads: dict[int, bytes] = {-1: commits.start(RUN)}
        self.commits: dict[int, Commit] = {}
        self.halted: list[BaseException] = []
        self._changed = threading.Condition()
        self.keeper.on_commit = self._commit
        self.keeper.on_halt = self.halted.append
        for commit in self.store.commits(0):
            self._commit(commit, self.store.head(commit.round))
        self.keeper.start()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        self.keeper.close()

    def _commit(self, commit: Commit, head: Head | None) -> None:
        assert head
        with self._changed:
            self.heads[commit.round] = head.head
            self.commits[commit.round] = commit
            self._changed.notify_all()

    def until(self, round: int) -> Commit:
        with self._changed:
            assert self._changed.wait_for(lambda: round in self.commits, PATIENCE), f"no commit {round}"
        return self.commits[round]

    def admit(self, *peers: int) -> list[Verdict]:
        return [
            answered(lambda done, peer=peer: self.keeper.admit(RUN, peer, signer(peer).public, b"", done))  # type: ignore[misc]
            for peer in peers
        ]

    def entry(self, peer: int, number: int, round: int, body: bytes = b"x", kind: Kind = Kind.MESSAGE) -> Entry:
        return signed(Entry(kind, peer, number, round, body), self.heads.get(round - 1, bytes(32)))

    def say(self, entry: Entry) -> Verdict:
        return answered(lambda done: self.keeper.say(entry, done))


def signed(entry: Entry, head: bytes, run: bytes = RUN) -> Entry:
    signature = signer(entry.peer).sign(entry.signed(run, head))
    return Entry(entry.kind, entry.peer, entry.number, entry.round, entry.body, signature)


def signer(peer: int) -> Signer:
    return Signer.unprotected(f"peer {peer}")


def answered(ask: Callable[[Callable[[Verdict], None]], None]) -> Verdict:
    """The verdict that `ask` gets."""
    found, there = list[Verdict](), threading.Event()

    def done(verdict: Verdict) -> None:
        found.append(verdict)
        there.set()

    ask(done)
    assert there.wait(relayed_patience), "no verdict"
    return found[0]
