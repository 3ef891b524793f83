"""The other peers of a run, by a relay's log: all aggregate the same uploads."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedshare.errors import RunHalted
from fedshare.forms.wire import Limits
from fedshare.network import Quotas
from fedshare.payload import Payload
from fedshare.relay.entries import Kind
from fedshare.relay.members import Members, uploads
from fedshare.relay.position import Positions
from fedshare.tensors import Tensors
from fedshare.transport.relay.bodies import Bodies
from fedshare.transport.relay.client import RelayClient, Taken

TIMEOUT = 7 * 86400.0  # seconds for a round, unless it is told


@dataclass
class Relayed:
    """`Peers` by a relay. The client must be started; its follower's position is after round `start`.

    Rounds that the log holds already are returned from it: nothing is said in them. In the open round an empty message
    says that this peer is there, even if it does not take part: then it does from the next round on.
    """

    client: RelayClient
    positions: Positions
    start: int
    members: Members  # after round `start`
    head: bytes
    expected: Mapping[str, Tensors]  # of an upload as it is sent
    timeout: float = TIMEOUT
    _mine: dict[int, bytes] = field(default_factory=dict, init=False)  # by round: what this peer attests

    def __post_init__(self) -> None:
        self._bodies = Bodies(self.expected)

    def ids(self, round: int) -> list[int]:
        while self.start < round - 1:
            self._advance(self._next())
        return self.members.ids()

    def took_part(self, round: int) -> bool | None:
        """Return whether the log has this peer's upload in a round; None if the round is open."""
        if self.client.peer not in (ids := self.ids(round)):
            return False
        if self.client.rounds <= round:
            return None
        return self.client.peer in uploads(self.client.peek(self.timeout).commit, ids)

    def gather(self, round: int, upload: Payload | None, quotas: Quotas | None = None) -> dict[int, Payload]:
        ids = self.ids(round)
        me = self.members.all.get(self.client.peer)
        if self.client.rounds <= round and me and not me.left:
            body = self._bodies.encode(upload) if upload is not None else b""
            self.client.say(Kind.MESSAGE, round, body, self.head)
        taken = self._next()
        self._advance(taken)
        said = uploads(taken.commit, ids)
        found = {}
        for peer, body in said.items():
            try:
                limits = Limits.of(quotas(peer)) if quotas else Limits(2**62, 2**30, 2**20, 2**20, 10**4)
                found[peer] = self._bodies.decode(body, limits)
            except ValueError:
                continue  # the others find the same
        return found

    @property
    def relay(self) -> bytes:
        """The relay's public key."""
        return self.client.relay

    def attest(self, digest: bytes) -> None:
        """Say that the state after the last round has this SHA-256.

        If most others attest another one, in the next round, `gather` raises Diverged.
        """
        self._mine = {self.start: digest}
        me = self.members.all.get(self.client.peer)
        if self.client.rounds <= self.start + 1 and me and not me.left:
            self.client.say(Kind.ATTEST, self.start + 1, digest, self.head)

    def leave(self, timeout: float = 10.0) -> bool:
        """Say that this peer takes no part from the next round on; return whether the relay has heard it."""
        me = self.members.all.get(self.client.peer)
        if me and not me.left and not me.removed:
            self.client.say(Kind.LEAVE, self.start + 1, b"", self.head)
        return self.client.flushed(timeout)

    def _next(self) -> Taken:
        return self.client.commit(self.timeout)

    def _advance(self, taken: Taken) -> None:
        if taken.commit.round != self.start + 1:
            raise RunHalted(f"the log goes on with round {taken.commit.round} after round {self.start}")
        self._compare(taken)
        self.positions.write(taken.position)
        self.start, self.members, self.head = taken.commit.round, taken.position.members, taken.position.head.head

    def _compare(self, taken: Taken) -> None:
        """Compare what this peer attests with what others do."""
        if (mine := self._mine.pop(taken.commit.round - 1, None)) is None:
            return
        others = {one.peer: one.body for one in taken.commit.entries if one.kind == Kind.ATTEST}
        said = Counter((others | {self.client.peer: mine}).values())
        digest, most = said.most_common(1)[0]
        if len(said) == 1:
            return
        after = f"after round {taken.commit.round - 1}"
        if 2 * most <= said.total():
            by = {one: [str(peer) for peer, found in sorted(others.items()) if found == one] for one in said}
            groups = "; ".join(f"{one.hex()[:12]} by {', '.join(peers)}" for one, peers in by.items())
            raise RunHalted(f"the peers' states differ {after}, and no state has a majority: {groups}")
        if digest != mine:
            raise Diverged(
                f"this peer's state {after} differs from that of most others: {mine.hex()[:12]}, and {most} of "
                f"{said.total()} attest {digest.hex()[:12]}"
            )


class Diverged(RunHalted):
    """This peer's state is not that of the others; it must be made again from the log."""
