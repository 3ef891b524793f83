"""Strategies whose model is the sum of a ledger's entries."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from fedshare.ledger import Commit
from fedshare.payload import Payload
from fedshare.state import State


@runtime_checkable
class Recorded(Protocol):
    """A strategy whose model is the sum of a ledger's entries."""

    def said(self, upload: Payload) -> bytes:
        """Return the codes in an upload."""
        ...

    def step(self, round: int, peers: int) -> int:
        """Return the factor on each integer of a round in which `peers` take part."""
        ...

    def extended(self, state: State, commit: Commit) -> State:
        """Return the memory with another commit in its ledger."""
        ...


@runtime_checkable
class Collects(Protocol):
    """A strategy at a peer whose memory holds the entries of everyone."""

    def commits(self, state: State) -> Iterator[Commit]:
        """Return the ledger that the entries make up, round by round."""
        ...
