"""A peer's connections with its neighbours, in the thread of its event loop: who may come, who is told what."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from fedshare._proto.mesh_pb2 import Meeting, MeshFrame, MeshHello, Waiting
from fedshare.errors import UserError
from fedshare.identity.admission import Admission
from fedshare.machine.tally import Tally
from fedshare.transport.mesh.agreement import Agreement
from fedshare.transport.mesh.dialler import LONGEST_PAUSE, dial
from fedshare.transport.mesh.door import Listener
from fedshare.transport.mesh.entry import Entry
from fedshare.transport.mesh.events import Events
from fedshare.transport.mesh.link import STEPS, Link
from fedshare.transport.mesh.rendezvous import meet
from fedshare.transport.mesh.roster import Roster
from fedshare.transport.mesh.settings import BEYOND, PROTOCOL, Settings
from fedshare.transport.mesh.state import LinkState, State
from fedshare.transport.mesh.talk import Stream, Talk, Traffic
from fedshare.transport.stream import tls
from fedshare.transport.stream.diagnose import NotYet
from fedshare.transport.stream.frames import FrameError

REVIEW = 1.0  # seconds between two looks at the operator's lists
TICK = 5.0  # seconds, at most, between two notices that this peer waits for others


class Circle:
    """`entered` is set once this peer has begun a round: then it looks for its neighbours no more."""

    def __init__(
        self,
        agreement: Agreement,
        settings: Settings,
        identity: tls.Renewed | None,
        roster: Roster,
        events: Events,
        tally: Tally,
        admission: Admission,
        known: Collection[str],
    ) -> None:
        self.agreement, self.roster = agreement, roster
        self.talks: dict[int, Talk] = {}
        self.said: dict[int, str] = {}  # by peer: why it cannot be reached
        self.traffic = {peer: Traffic() for peer in agreement.links}
        self._me, self._settings, self._identity = agreement.me, settings, identity
        self._events, self._tally = events, tally
        self._entry = Entry(settings, agreement.me, agreement.links, admission)
        self.refusals: dict[int, str] = {}  # by peer: why it, or this peer to it, may not come
        self._known = known
        self._news = {peer: asyncio.Event() for peer in agreement.links}  # set when there is a new address
        self.gone: dict[int, float] = {}  # by peer: when its connection ended
        self._changes = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing, self.entered = False, False

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._tasks = [
            asyncio.ensure_future(dial(peer, self, self._identity, self._settings.heartbeat))
            for peer in self.agreement.links
            if peer < self._me
        ]
        self._tasks += [asyncio.ensure_future(self._announce()), asyncio.ensure_future(self._review())]
        now = asyncio.get_running_loop().time()
        self.gone = dict.fromkeys(self.agreement.links, now)

    async def close(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for talk in list(self.talks.values()):
            talk.cut.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.close()

    # What is waited for.

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def stir(self) -> None:
        """Something has changed."""
        self._changes.set()
        for talk in self.talks.values():
            talk.wake()

    async def change(self, until: float) -> bool:
        """Wait for a change, and tell the neighbours now and then that this peer waits; False when `until` is over."""
        self._changes.clear()
        tick = min(TICK, self._settings.timeout / 4)
        while (left := until - self.now()) > 0:
            try:
                await asyncio.wait_for(self._changes.wait(), min(left, tick))
                return True
            except TimeoutError:
                if left > tick:
                    self._wait()
        return False

    def _wait(self) -> None:
        for peer, talk in self.talks.items():
            outbox = self.agreement.links[peer].outbox
            if not outbox:
                outbox.append(MeshFrame(waiting=Waiting()))
                talk.wake()

    async def hang_up(self, about: Callable[[Link], bool]) -> None:
        """End connections whose other end does not answer."""
        for peer, talk in list(self.talks.items()):
            if about(self.agreement.links[peer]):
                talk.cut.set()
        await asyncio.sleep(0.05)

    def lose(self, peer: int, why: str) -> None:
        self._tally.say(f"peer {peer}", f"round {self.agreement.entered}: goes on without peer {peer}: {why}", True)
        self.agreement.shut(peer)
        self.stir()

    async def _announce(self) -> None:
        """Until the first round, tell neighbours that dial where this peer is, and ask for those not known."""
        pause = 0.1
        while not self.entered:
            away = [peer for peer, link in self.agreement.links.items() if not link.connected]
            addresses = {peer: self.roster.address(peer) for peer in away if peer > self._me or self._known}
            for peer, address in addresses.items():
                if address and peer > self._me:
                    await self._meet(address, peer)
            if None in addresses.values():
                for address in list(self._known):  # which may become more
                    await self._meet(address, None)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _review(self) -> None:
        """Hang up on neighbours whom the operator's lists bar while they are connected."""
        while True:
            await asyncio.sleep(REVIEW)
            if not self._entry.admission.refresh():
                continue
            for peer, talk in list(self.talks.items()):
                if reason := self._entry.admission.objection(peer, self.roster.certificate(peer)):
                    self.refused(peer, reason)
                    talk.cut.set()
                    if self.agreement.links[peer].open_in(self.agreement.entered):
                        self.lose(peer, reason)

    async def _meet(self, address: str, peer: int | None) -> None:
        identity = self._identity.now() if self._identity else None
        try:
            for said in self.roster.all():
                self.learn(await meet(address, peer, identity, self._settings.heartbeat, said))
        except NotYet:
            pass
        except (UserError, FrameError) as error:
            self._tally.say(address, str(error))

    # Connections.

    def objection(self, hello: MeshHello, certified: int | None, pem: bytes | None) -> str | None:
        """Why whoever greets so may not come; None where it may."""
        return self._entry.objection(hello, certified, pem or self.roster.certificate(hello.peer))

    def greet(self, peer: int) -> MeshFrame:
        hello = self.agreement.greet(peer)
        hello.protocol, hello.peer = PROTOCOL, self._me
        hello.version, hello.run = self._settings.version, self._settings.run
        return MeshFrame(hello=hello)

    async def serve(self, hello: MeshHello, stream: Any) -> None:
        """Hold the stream of a neighbour that has dialled."""
        peer = hello.peer
        if peer < self._me:
            raise UserError(f"peer {self._me} dials peer {peer}, and not the other way round")
        if old := self.talks.get(peer):
            old.cut.set()
            while self.talks.get(peer) is old:
                await self.change(self.now() + 1.0)
        self.agreement.meet(peer, hello)
        answer = self.greet(peer).SerializeToString()
        await self._hold(peer, hello, stream, answer)

    async def hold(self, peer: int, greeted: MeshHello, answer: MeshHello, stream: Any) -> None:
        """Hold a stream to a neighbour that was dialled."""
        if reason := self.objection(answer, answer.peer if self._identity else None, None):
            raise UserError(reason)
        if answer.peer != peer:
            raise UserError(f"it is peer {answer.peer}")
        if greeted.begun != self.agreement.begun:
            return  # what was said in the greeting is not true any more: once again
        self.agreement.meet(peer, answer)
        await self._hold(peer, answer, stream, None)

    async def _hold(self, peer: int, hello: MeshHello, stream: Stream, answer: bytes | None) -> None:
        link, agreement = self.agreement.links[peer], self.agreement
        made = Talk(
            *(link, hello.lacks, self._settings.limit, self._settings.rounds + BEYOND, self.traffic[peer]),
            *(lambda frame: self._hear(peer, frame), self.stir),
        )
        self.talks[peer] = made
        self.refusals.pop(peer, None)
        self.said.pop(peer, None)
        link.outbox.extend(MeshFrame(meeting=some) for some in self.roster.all())
        self._tally.say(f"peer {peer}", f"connected with peer {peer}", changes=True)
        try:
            if answer is not None:
                await stream.write(answer)
            self.stir()
            await made.converse(stream)
        finally:
            if self.talks.get(peer) is made:
                del self.talks[peer]
                agreement.part(peer)
                self.gone[peer] = self.now()
                if not self._closing and not link.left:
                    self._tally.say(f"peer {peer}", f"the connection with peer {peer} has ended", changes=True)
                self.stir()

    def unreached(self, peer: int, reason: str) -> None:
        if self.said.get(peer) != reason and not self.agreement.links[peer].left:
            self.said[peer] = reason
            self._tally.say(f"peer {peer}", f"peer {peer} is not reached: {reason}")
        self.stir()

    def refused(self, peer: int, reason: str) -> None:
        if peer in self.agreement.links:
            if self.refusals.get(peer) != reason:
                self._tally.say(f"peer {peer}", f"peer {peer}: {reason}")
            self.refusals[peer] = reason
            self.stir()

    def address(self, peer: int) -> str | None:
        return self.roster.address(peer)

    async def pause(self, peer: int, seconds: float) -> None:
        self._news[peer].clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news[peer].wait(), seconds)

    def _hear(self, peer: int, frame: MeshFrame) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "meeting":
            self.learn(frame.meeting)
        elif kind != "waiting":
            self.agreement.hear(peer, frame)
            if kind == "leave":
                self._events.left(peer, frame.leave.round)
                self._tally.say(f"peer {peer}", f"peer {peer} leaves after round {frame.leave.round}", changes=True)
            elif kind == "propose" and frame.propose.skip:
                self._events.left(peer, frame.propose.entered)
        self.stir()

    def learn(self, meeting: Meeting) -> None:
        """Take what others say of where peers are, and pass on what is new."""
        if new := self.roster.learn(meeting):
            for peer in self.talks:
                self.agreement.links[peer].outbox.append(MeshFrame(meeting=new))
            for one in new.peers:
                if one.peer in self._news:
                    self._news[one.peer].set()
            self.stir()

    def state(self, seconds: float) -> State:
        """How the links are doing; the round before took `seconds`."""
        entered = self.agreement.entered
        links = tuple(
            LinkState(
                *(peer, link.connected, link.since if link.open_in(entered) else 0),
                *(max(link.entered, link.lacks // STEPS), self.traffic[peer].sent, self.traffic[peer].received),
                *(self.roster.shown(peer), self.refusals.get(peer) or self.said.get(peer, "")),
            )
            for peer, link in self.agreement.links.items()
        )
        return State(self._me, self._settings.run.hex(), self._settings.version, entered, seconds, links)
