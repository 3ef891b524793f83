"""A peer among its neighbours, in the thread of its event loop: it listens, dials, joins, waits and leaves."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from fedshare._proto.mesh_pb2 import Meeting, MeshFrame, MeshHello, Waiting
from fedshare.errors import NAME, RunHalted, UserError, brief
from fedshare.identity.admission import Admission
from fedshare.machine.tally import Tally
from fedshare.transport.mesh.agreement import Agreement
from fedshare.transport.mesh.dialler import LONGEST_PAUSE, dial
from fedshare.transport.mesh.door import Listener
from fedshare.transport.mesh.events import Events
from fedshare.transport.mesh.link import STEPS, number_of
from fedshare.transport.mesh.rendezvous import meet
from fedshare.transport.mesh.roster import Roster
from fedshare.transport.mesh.settings import BEYOND, PROTOCOL, Settings
from fedshare.transport.mesh.spool import Round
from fedshare.transport.mesh.state import LinkState, State
from fedshare.transport.mesh.talk import Stream, Talk, Traffic, latest_in
from fedshare.transport.stream import tls
from fedshare.transport.stream.diagnose import NotYet
from fedshare.transport.stream.frames import FrameError

REVIEW = 1.0  # seconds between two looks at the operator's lists
TICK = 5.0  # seconds, at most, between two notices that this peer waits for others


class Node:
    """All methods but `restore` run in the event loop."""

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
        self._events, self._tally, self._admission = events, tally, admission
        self._refused: dict[int, str] = {}  # by peer: why it, or this peer to it, may not come
        self._known = known
        self._news = {peer: asyncio.Event() for peer in agreement.links}  # set when there is a new address
        self._gone: dict[int, float] = {}  # by peer: when its connection ended
        self._changes = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing, self._entered = False, False

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._tasks = [
            asyncio.ensure_future(dial(peer, self, self._identity, self._settings.heartbeat))
            for peer in self.agreement.links
            if peer < self._me
        ]
        self._tasks += [asyncio.ensure_future(self._announce()), asyncio.ensure_future(self._review())]
        now = asyncio.get_running_loop().time()
        self._gone = dict.fromkeys(self.agreement.links, now)

    async def close(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for talk in list(self.talks.values()):
            talk.cut.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.close()

    async def _announce(self) -> None:
        """Until the first round, tell neighbours that dial where this peer is, and ask for those not known."""
        pause = 0.1
        while not self._entered:
            away = [peer for peer, link in self.agreement.links.items() if not link.connected]
            addresses = {peer: self.roster.address(peer) for peer in away if peer > self._me or self._known}
            for peer, address in addresses.items():
                if address and peer > self._me:
                    await self._meet(address, peer)
            if None in addresses.values():
                for address in self._known:
                    await self._meet(address, None)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _review(self) -> None:
        """Hang up on neighbours whom the operator's lists bar while they are connected."""
        while True:
            await asyncio.sleep(REVIEW)
            if not self._admission.refresh():
                continue
            for peer, talk in list(self.talks.items()):
                if reason := self._admission.objection(peer, self.roster.certificate(peer)):
                    self.refused(peer, reason)
                    talk.cut.set()
                    if self.agreement.links[peer].open_in(self.agreement.entered):
                        self._lose(peer, reason)

    async def _meet(self, address: str, peer: int | None) -> None:
        identity = self._identity.now() if self._identity else None
        try:
            for said in self.roster.all():
                self.learn(await meet(address, peer, identity, self._settings.heartbeat, said))
        except NotYet:
            pass
        except (UserError, FrameError) as error:
            self._tally.say(address, str(error))

    # Rounds.

    async def join(self, round: int) -> None:
        """Meet the neighbours and agree with them on a round. Raises RunHalted, or UserError where all refuse."""
        self.agreement.join(round)
        links, met = self.agreement.links, 0.0
        end = self._now() + self._settings.wait
        while missing := [peer for peer, link in links.items() if not link.connected and peer not in self._refused]:
            if not met and any(link.connected and link.begun for link in links.values()):
                met = self._now()  # the others have begun: those who are away are not waited for so long
            some = met and any(link.connected for link in links.values())
            if not await self._change(min(end, met + self._settings.grace) if some else end):
                break
        if links and not any(link.connected for link in links.values()):
            raise self._nobody(missing)
        self.agreement.propose()
        self._stir()
        until = self._now() + self._settings.wait + self._settings.timeout
        while not self.agreement.ready(round):
            if not await self._change(until):
                await self._hang_up(lambda link: bool(link.offered))
        if links and not any(link.next for link in links.values()):
            await self.join(round)  # they were lost meanwhile

    def _nobody(self, missing: Collection[int]) -> UserError:
        if not missing:
            peer, reason = next(iter(self._refused.items()))
            return UserError(f"peer {peer}: {reason}")
        known = self._refused | self.said
        each = [f"peer {peer} ({self._why(peer, known)})" for peer in self.agreement.links]
        return RunHalted(f"no neighbour was reached in {self._settings.wait:g} s: {', '.join(each)}")

    def _why(self, peer: int, known: Mapping[int, str]) -> str:
        return known.get(peer) or ("it did not dial" if peer > self._me else "not dialled yet")

    def restore(self, last: Round, said: Mapping[int, Mapping[int, bytes]], round: int) -> None:
        """Begin where this peer was: in the round `last`, to enter `round`. `said` is by number and peer."""
        self.agreement.resume(last.number, last.links)
        self._events.resume(last.links, last.number == min(last.links.values()))
        for peer, link in self.agreement.links.items():
            link.lacks = number_of(round, 0)
            if link.since:
                link.sent = {number: messages[peer] for number, messages in said.items() if peer in messages}

    async def reunite(self, last: Round) -> bool:
        """Wait for the neighbours of the round that is on disk; return whether any link with them is still open."""
        until = self._now() + self._settings.grace
        links = self.agreement.links
        while any(peer in last.links and not link.connected for peer, link in links.items()):
            if not await self._change(until):
                break
        return any(link.connected and link.open_in(last.number) for link in links.values())

    async def enter(self, round: int) -> tuple[int, dict[int, int]]:
        """Begin `round` or a later one; return it, and the links that are open, with the rounds since which."""
        until = self._now() + self._settings.timeout
        while not self.agreement.ready(round):
            if not await self._change(until):
                await self._hang_up(lambda link: bool(link.offered))
        before = self.agreement.entered
        self._events.end_round(before, self.open())
        entered = self.agreement.begin(round)
        for peer in self.agreement.fresh() if self._entered else ():
            self._tally.say(f"peer {peer}", f"round {entered}: peer {peer} takes part from here on", changes=True)
        self._entered = True
        self._events.begin_round(entered, before, round, self.open())
        self._stir()
        open_ = {peer: link.since for peer, link in self.agreement.links.items() if link.open_in(entered)}
        return entered, open_

    def open(self) -> set[int]:
        """The peers whose links are open in this round."""
        entered = self.agreement.entered
        return {peer for peer, link in self.agreement.links.items() if link.open_in(entered)}

    async def swap(self, step: int, messages: Mapping[int, bytes], awaited: Collection[int]) -> dict[int, bytes]:
        """Send the messages, and return those of the awaited peers whose links are open and stay so."""
        links, round = self.agreement.links, self.agreement.entered
        number, began = number_of(round, step), self._now()
        for peer, data in messages.items():
            if links[peer].open_in(round):
                links[peer].sent.setdefault(number, data)
        self._stir()
        expected = [peer for peer in sorted(awaited) if peer in links]
        while missing := [
            peer for peer in expected if number not in links[peer].arrived and links[peer].open_in(round)
        ]:
            now = self._now()
            deadlines = {peer: self._deadline(peer, began) for peer in missing}
            lost = {peer: why for peer, (deadline, why) in deadlines.items() if now >= deadline}
            lost |= {peer: f"it sent nothing in step {step}" for peer in missing if links[peer].lacks > number}
            for peer, why in lost.items():
                self._lose(peer, why)
            if not lost:
                await self._change(min(deadline for deadline, _ in deadlines.values()))
        found = {peer: links[peer].arrived[number] for peer in expected if number in links[peer].arrived}
        for peer in found:
            self._events.heard(peer)
        for link in links.values():
            link.forget(number)
        self._stir()
        return found

    def _deadline(self, peer: int, began: float) -> tuple[float, str]:
        """Until when a neighbour is awaited, and what is said if it does not come."""
        ours = self._settings
        if talk := self.talks.get(peer):
            until = min(max(began, talk.heard) + ours.timeout, began + ours.wait + 2 * ours.timeout)
            return until, f"no message in {ours.timeout:g} s"
        reason = self.said.get(peer)
        return self._gone[peer] + ours.grace, f"gone for {ours.grace:g} s{f' ({reason})' if reason else ''}"

    def _lose(self, peer: int, why: str) -> None:
        self._tally.say(f"peer {peer}", f"round {self.agreement.entered}: goes on without peer {peer}: {why}", True)
        self.agreement.shut(peer)
        self._stir()

    async def leave(self) -> None:
        """Say that this round was the last one, and wait until the neighbours need nothing of it any more."""
        self.agreement.leave()
        self._events.end_round(self.agreement.last, self.open())
        self._events.leave(self.agreement.last)
        self._stir()
        until = self._now() + self._settings.grace
        links = self.agreement.links.values()
        last = self.agreement.last
        while any(not link.finished and link.open_in(last) for link in links):
            if not await self._change(until):
                break
        while any(not talk.idle() for talk in self.talks.values()):
            if not await self._change(min(until, self._now() + 0.05)) and self._now() >= until:
                break

    # Connections.

    def objection(self, hello: MeshHello, certified: int | None, pem: bytes | None) -> str | None:
        """Why whoever greets so may not come; None where it may."""
        peer, ours = hello.peer, self._settings
        if certified is not None and certified != peer:
            return f"its certificate is peer {certified}'s, but it says that it is peer {peer}"
        if hello.protocol != PROTOCOL or hello.version != ours.version:
            theirs = f"fedshare {brief(hello.version, NAME)} (mesh {hello.protocol})"
            return f"it runs {theirs}, peer {self._me} fedshare {ours.version} (mesh {PROTOCOL})"
        if hello.run != ours.run:
            return f"its run is {brief(hello.run.hex()[:12])}, that of peer {self._me} {ours.run.hex()[:12]}"
        if peer >= ours.peers:
            return f"there are {ours.peers} peers, 0 to {ours.peers - 1}"
        if (named := latest_in(MeshFrame(hello=hello))) > ours.rounds + BEYOND:
            return f"it names round {named}, and the run has {ours.rounds}"
        self._admission.refresh()
        if reason := self._admission.objection(peer, pem or self.roster.certificate(peer)):
            return reason
        if peer not in self.agreement.links:
            return f"peer {peer} is no neighbour of peer {self._me} in the run's graph"
        return None

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
                await self._change(self._now() + 1.0)
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
            *(lambda frame: self._hear(peer, frame), self._stir),
        )
        self.talks[peer] = made
        self._refused.pop(peer, None)
        self.said.pop(peer, None)
        link.outbox.extend(MeshFrame(meeting=some) for some in self.roster.all())
        self._tally.say(f"peer {peer}", f"connected with peer {peer}", changes=True)
        try:
            if answer is not None:
                await stream.write(answer)
            self._stir()
            await made.converse(stream)
        finally:
            if self.talks.get(peer) is made:
                del self.talks[peer]
                agreement.part(peer)
                self._gone[peer] = self._now()
                if not self._closing and not link.left:
                    self._tally.say(f"peer {peer}", f"the connection with peer {peer} has ended", changes=True)
                self._stir()

    def unreached(self, peer: int, reason: str) -> None:
        if self.said.get(peer) != reason and not self.agreement.links[peer].left:
            self.said[peer] = reason
            self._tally.say(f"peer {peer}", f"peer {peer} is not reached: {reason}")
        self._stir()

    def refused(self, peer: int, reason: str) -> None:
        if peer in self.agreement.links:
            if self._refused.get(peer) != reason:
                self._tally.say(f"peer {peer}", f"peer {peer}: {reason}")
            self._refused[peer] = reason
            self._stir()

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
        self._stir()

    def learn(self, meeting: Meeting) -> None:
        """Take what others say of where peers are, and pass on what is new."""
        if new := self.roster.learn(meeting):
            for peer in self.talks:
                self.agreement.links[peer].outbox.append(MeshFrame(meeting=new))
            for one in new.peers:
                if one.peer in self._news:
                    self._news[one.peer].set()
            self._stir()

    def state(self, seconds: float) -> State:
        """How the links are doing; the round before took `seconds`."""
        entered = self.agreement.entered
        links = tuple(
            LinkState(
                *(peer, link.connected, link.since if link.open_in(entered) else 0),
                *(max(link.entered, link.lacks // STEPS), self.traffic[peer].sent, self.traffic[peer].received),
                *(self.roster.shown(peer), self._refused.get(peer) or self.said.get(peer, "")),
            )
            for peer, link in self.agreement.links.items()
        )
        return State(self._me, self._settings.run.hex(), self._settings.version, entered, seconds, links)

    # Waiting.

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _stir(self) -> None:
        """Something has changed."""
        self._changes.set()
        for talk in self.talks.values():
            talk.wake()

    async def _change(self, until: float) -> bool:
        """Wait for a change, and tell the neighbours now and then that this peer waits; False when `until` is over."""
        self._changes.clear()
        tick = min(TICK, self._settings.timeout / 4)
        while (left := until - self._now()) > 0:
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

    async def _hang_up(self, about: Callable[[Any], bool]) -> None:
        """End connections whose other end does not answer."""
        for peer, talk in list(self.talks.items()):
            if about(self.agreement.links[peer]):
                talk.cut.set()
        await asyncio.sleep(0.05)
