"""How neighbours agree on the rounds from which their links are open: no sockets and no clock.

A peer proposes a round that, as far as it knows, nobody has begun, and a neighbour accepts it unless it has. The
proposal of a peer that joins goes to all neighbours alike. Of two that take part and whose link was lost, the one with
the lower number proposes; whoever is behind by more than a round then skips to that round, and takes its other
neighbours along.
"""

from collections.abc import Collection, Mapping

from fedshare._proto.mesh_pb2 import (
    Accept,
    Closed,
    Finished,
    LastRound,
    MeshFrame,
    MeshHello,
    Propose,
    TooLate,
    Waiting,
)
from fedshare.transport.mesh.link import NEVER, Link, number_of

AHEAD = 2  # rounds between the latest that is known and one that is proposed


class Agreement:
    """The links of the peer `me`. What is to be said goes into their outboxes."""

    def __init__(self, me: int, neighbours: Collection[int]) -> None:
        self.me = me
        self.links = {peer: Link(peer) for peer in sorted(neighbours)}
        self.entered = (
            0  # the round that was begun last; of a peer that is about to join, the one before what it asks for
        )
        self.begun = False  # whether this peer takes part; else it is about to join
        self.last = 0  # its last round, when it has left
        self._aim = 0  # the round to which it goes next, where that is not the next one; 0: not known yet
        self._skip = False  # whether others are to follow there

    # With a neighbour.

    def greet(self, peer: int) -> MeshHello:
        link = self.links[peer]
        lacks = max(link.lacks, number_of(link.since, 0))
        return MeshHello(entered=self.entered, begun=self.begun, opened=link.opened(), until=_told(link), lacks=lacks)

    def meet(self, peer: int, hello: MeshHello) -> None:
        """A connection to a neighbour is there, and that is its greeting."""
        link = self.links[peer]
        link.connected, link.begun, link.entered, link.left = True, hello.begun, hello.entered, False
        link.offered, link.finished = 0, False
        link.outbox.clear()
        for round in sorted(set(hello.opened) - set(link.opened())):  # it was closed here after this end's greeting
            link.outbox.append(MeshFrame(closed=Closed(opened=round)))
        if link.since in hello.opened and link.until < NEVER and hello.until != link.until:
            link.outbox.append(MeshFrame(closed=Closed(opened=link.since, until=link.until)))
        link.compare(list(hello.opened), hello.until or NEVER, self.entered)
        if self.last:
            link.outbox.append(MeshFrame(leave=LastRound(round=self.last)))
        self._settle(link)

    def part(self, peer: int) -> None:
        """The connection to a neighbour is gone."""
        link = self.links[peer]
        link.connected, link.offered = False, 0
        link.outbox.clear()

    def shut(self, peer: int) -> None:
        """Close a link in this round: nothing is awaited of that neighbour any more."""
        link = self.links[peer]
        opened = link.since
        link.end(self.entered - 1)
        if link.connected and opened:
            link.outbox.append(MeshFrame(closed=Closed(opened=opened, until=self.entered - 1)))
        self._settle(link)

    def hear(self, peer: int, frame: MeshFrame) -> None:
        """Take a frame that is about the link, and not a part of a message."""
        link = self.links[peer]
        kind = frame.WhichOneof("kind")
        if kind == "propose":
            self._proposed(link, frame.propose)
        elif kind == "accept":
            if frame.accept.round == link.offered:
                link.offered, link.begun = 0, True
                if frame.accept.round < link.next:  # of what the other end has proposed meanwhile
                    link.outbox.append(MeshFrame(closed=Closed(opened=frame.accept.round)))
                link.next = max(link.next, frame.accept.round)
        elif kind == "too_late":
            self._refused(link, frame.too_late)
        elif kind == "closed":
            if frame.closed.opened == link.next:
                link.next = 0
            elif frame.closed.opened == link.since:
                link.end(frame.closed.until)
            self._settle(link)
        elif kind == "leave":
            link.left, link.finished, link.next = True, True, 0
            link.entered = max(link.entered, frame.leave.round)
            link.end(frame.leave.round)
            self._answer(link)
        elif kind == "finished":
            link.finished = True

    def _proposed(self, link: Link, said: Propose) -> None:
        link.entered = max(link.entered, said.entered)
        if said.round == link.since:
            link.outbox.append(MeshFrame(accept=Accept(round=said.round)))
            return
        link.end(said.entered)
        if said.round <= self.entered or self.last:
            link.outbox.append(MeshFrame(too_late=TooLate(round=said.round, entered=self.entered)))
            return
        if 0 < link.next < said.round:  # the other end may have begun that round already
            link.outbox.append(MeshFrame(closed=Closed(opened=link.next)))
        link.next, link.begun = max(link.next, said.round), True
        link.outbox.append(MeshFrame(accept=Accept(round=said.round)))
        behind = said.entered > self.entered + 1 or (said.skip and said.round > self.entered + 1)
        if behind if self.begun else said.skip:
            self._go_to(said.round, skip=True)

    def _refused(self, link: Link, said: TooLate) -> None:
        if said.round != link.offered:
            return
        link.offered, link.entered = 0, max(link.entered, said.entered)
        if not self.begun or self._aim or said.entered > self.entered + 1:
            self._go_to(said.entered + AHEAD, self._skip or self.begun)
        else:
            self._settle(link)

    # All of them.

    def resume(self, round: int, links: Mapping[int, int]) -> None:
        """Take part from the start: `round` was begun, with links that were open since these rounds."""
        self.entered, self.begun = round, True
        for peer, since in links.items():
            if peer in self.links:
                self.links[peer].since = since

    def join(self, round: int) -> None:
        """Take no part until a round was agreed on, from `round` on."""
        self.entered, self.begun = max(self.entered, round - 1), False
        for link in self.links.values():
            link.end(0)
            link.lacks = 0
            link.arrived.clear()

    def propose(self) -> None:
        """Join: propose a round to all who are connected, and to those who will be before this peer has begun."""
        there = [link for link in self.links.values() if link.connected and not link.left]
        possible = [link.next or link.entered + (AHEAD if link.begun else 1) for link in there]
        self._go_to(max([self.entered + 1, *possible]), skip=False)

    def ready(self, round: int) -> bool:
        """Whether `round`, or a later one to which this peer goes, can begin: no answer is outstanding."""
        if not self.begun and not self._aim:
            return False
        target = max(round, self._aim)
        return not any(link.connected and link.offered and link.offered <= target for link in self.links.values())

    def begin(self, round: int) -> int:
        """Begin `round`, or the later one to which this peer goes, and return its number."""
        before = self.entered
        self.entered = round = max(round, self._aim)
        self.begun, self._aim, self._skip = True, 0, False
        for link in self.links.values():
            if link.connected and 0 < link.next < round:
                link.outbox.append(MeshFrame(closed=Closed(opened=link.next, until=before)))
            link.begin(round, before)
            if link.connected and link.next:
                link.outbox.append(MeshFrame(waiting=Waiting()))  # or it would hear nothing until then
            self._answer(link)
            self._settle(link)
        return round

    def fresh(self) -> frozenset[int]:
        return frozenset(link.peer for link in self.links.values() if link.since == self.entered)

    def leave(self) -> None:
        """Say that the round begun last is this peer's last one."""
        self.last = self.entered
        for link in self.links.values():
            self._answer(link)
            if link.connected:
                link.outbox.append(MeshFrame(leave=LastRound(round=self.last)))

    def _answer(self, link: Link) -> None:
        """Tell a neighbour that has left that its last messages are needed no more, once they are not."""
        if link.left and link.connected and (self.entered > link.entered or self.last):
            link.outbox.append(MeshFrame(finished=Finished()))

    def _go_to(self, round: int, skip: bool) -> None:
        if round > self._aim:
            self._aim, self._skip = round, self._skip or skip
            for link in self.links.values():
                self._settle(link)

    def _settle(self, link: Link) -> None:
        """Propose to a neighbour what is to be agreed on next, if anything is."""
        if not link.connected or link.left or self.last:
            return
        if self._aim:
            wanted = self._aim
        elif link.next or link.offered or link.open_in(self.entered + 1):
            return
        elif self.begun and link.begun and self.me < link.peer:
            wanted = max(self.entered, link.entered) + AHEAD
            if link.entered > self.entered + 1:
                self._go_to(wanted, skip=True)
                return
        else:
            return
        if wanted == link.next:
            if link.since and link.until > self.entered:
                link.outbox.append(MeshFrame(closed=Closed(opened=link.since, until=self.entered)))
                link.end(self.entered)
        elif wanted != link.offered:
            link.offered = wanted
            link.end(self.entered)
            said = Propose(round=wanted, entered=self.entered, skip=self._skip)
            link.outbox.append(MeshFrame(propose=said))


def _told(link: Link) -> int:
    """The last round of a link, as a greeting has it."""
    return link.until if link.since and link.until < NEVER else 0
