"""What a peer needs of its links to other peers, whatever carries them."""

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from fedshare.network import Peers
from fedshare.strategy import Strategy


class Mesh(Protocol):
    """A peer's links to its neighbours, for one run.

    A link is open from the round on that both ends have agreed on when they met, until one of them leaves, is lost, or
    goes to a later round. In a round in which it is open, each end sends the other exactly one message in each step.
    """

    def enter(self, round: int) -> int:
        """Begin `round`, and return its number, or that of a later one if the peers that were met are further.

        The first call joins: it agrees with all neighbours that can be reached on a round that none of them has begun.
        What was sent in rounds before the one before this is forgotten. Raises RunHalted if no peer can be reached.
        """
        ...

    def open(self) -> frozenset[int]:
        """Return the peers whose links are open now, in this round."""
        ...

    def fresh(self) -> frozenset[int]:
        """Return the peers whose links have opened with this round: nothing is known of what they have."""
        ...

    def swap(self, step: int, messages: Mapping[int, bytes], awaited: Collection[int]) -> dict[int, bytes]:
        """Send these messages of the round's `step`, by peer, and return those of the awaited peers.

        Messages to peers whose links are not open are not sent, and such peers are not awaited: the result lacks them.
        A message is on disk before it is sent; if the step was taken before a crash, the bytes of then are sent.
        """
        ...

    def verifier(self, peer: int) -> bytes | None:
        """Return the public signing key of any peer of the run, 32 bytes; None if it was never heard of."""
        ...

    def leave(self) -> None:
        """Tell the neighbours that the round which was entered last was this peer's last one, and close."""
        ...


class Entering:
    """Enters the rounds of a mesh as they are asked for, in order."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._entered = mesh, 0

    def takes_part(self, round: int) -> bool:
        """Return whether the peer takes part in `round`."""
        if round > self._entered:
            self._entered = self._mesh.enter(round)
        return round == self._entered


class Voice(Protocol):
    """How a peer signs its entries, and checks those of others. `doubt` is told what is wrong with a message."""

    def sign(self, round: int, codes: bytes) -> bytes:
        """Return the signature under this peer's entry of the round, `SIGNED` bytes."""
        ...

    def removals(self) -> list[tuple[int, bytes]]:
        """Return the peers whose removal was ordered here, with the operator's signature under each, `SIGNED` bytes."""
        ...

    def genuine(self, round: int, peer: int, said: bytes) -> bool:
        """Return whether `said`, codes and signature, is an entry that the peer has signed.

        In round 0: whether the operator has signed the peer's removal.
        """
        ...

    def doubt(self, peer: int, flaw: ValueError) -> None:
        """A message of a neighbour was not used: `flaw` says why."""
        ...


SIGNED = 64


@runtime_checkable
class Apart(Protocol):
    """A strategy among peers that can run with each peer in a process of its own."""

    def check_apart(self) -> None:
        """Raise UserError if a setting can only be simulated."""
        ...

    def at(self, me: int, mesh: Mesh, voice: Voice) -> tuple[Strategy, Peers]:
        """Return the strategy as it runs at one peer, whose memory is the peer's own, and its neighbours' uploads."""
        ...
