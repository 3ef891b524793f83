"""A peer in its rounds, in the thread of its event loop: it joins, waits for messages, and leaves."""

from collections.abc import Collection, Mapping

from fedshare.errors import RunHalted, UserError
from fedshare.machine.tally import Tally
from fedshare.transport.mesh.agreement import Agreement
from fedshare.transport.mesh.circle import Circle
from fedshare.transport.mesh.events import Events
from fedshare.transport.mesh.link import number_of
from fedshare.transport.mesh.settings import Settings
from fedshare.transport.mesh.spool import Round


class Node:
    """All methods but `restore` run in the event loop."""

    def __init__(self, agreement: Agreement, circle: Circle, settings: Settings, events: Events, tally: Tally) -> None:
        self._agreement, self._circle, self._settings = agreement, circle, settings
        self._events, self._tally, self._me = events, tally, agreement.me

    async def join(self, round: int) -> None:
        """Meet the neighbours and agree with them on a round. Raises RunHalted, or UserError where all refuse."""
        self._agreement.join(round)
        links, met = self._agreement.links, 0.0
        end = self._circle.now() + self._settings.wait
        while missing := [
            peer for peer, link in links.items() if not link.connected and peer not in self._circle.refusals
        ]:
            if not met and any(link.connected and link.begun for link in links.values()):
                met = self._circle.now()  # the others have begun: those who are away are not waited for so long
            some = met and any(link.connected for link in links.values())
            if not await self._circle.change(min(end, met + self._settings.grace) if some else end):
                break
        if links and not any(link.connected for link in links.values()):
            raise self._nobody(missing)
        self._agreement.propose()
        self._circle.stir()
        until = self._circle.now() + self._settings.wait + self._settings.timeout
        while not self._agreement.ready(round):
            if not await self._circle.change(until):
                await self._circle.hang_up(lambda link: bool(link.offered))
        if links and not any(link.next for link in links.values()):
            await self.join(round)  # they were lost meanwhile

    def _nobody(self, missing: Collection[int]) -> UserError:
        if not missing:
            peer, reason = next(iter(self._circle.refusals.items()))
            return UserError(f"peer {peer}: {reason}")
        known = self._circle.refusals | self._circle.said
        each = [f"peer {peer} ({self._why(peer, known)})" for peer in self._agreement.links]
        return RunHalted(f"no neighbour was reached in {self._settings.wait:g} s: {', '.join(each)}")

    def _why(self, peer: int, known: Mapping[int, str]) -> str:
        return known.get(peer) or ("it did not dial" if peer > self._me else "not dialled yet")

    def restore(self, last: Round, said: Mapping[int, Mapping[int, bytes]], round: int) -> None:
        """Begin where this peer was: in the round `last`, to enter `round`. `said` is by number and peer."""
        self._agreement.resume(last.number, last.links)
        self._events.resume(last.links, last.number == min(last.links.values()))
        for peer, link in self._agreement.links.items():
            link.lacks = number_of(round, 0)
            if link.since:
                link.sent = {number: messages[peer] for number, messages in said.items() if peer in messages}

    async def reunite(self, last: Round) -> bool:
        """Wait for the neighbours of the round that is on disk; return whether any link with them is still open."""
        until = self._circle.now() + self._settings.grace
        links = self._agreement.links
        while any(peer in last.links and not link.connected for peer, link in links.items()):
            if not await self._circle.change(until):
                break
        return any(link.connected and link.open_in(last.number) for link in links.values())

    async def enter(self, round: int) -> tuple[int, dict[int, int]]:
        """Begin `round` or a later one; return it, and the links that are open, with the rounds since which."""
        until = self._circle.now() + self._settings.timeout
        while not self._agreement.ready(round):
            if not await self._circle.change(until):
                await self._circle.hang_up(lambda link: bool(link.offered))
        before = self._agreement.entered
        self._events.end_round(before, self.open())
        entered = self._agreement.begin(round)
        for peer in self._agreement.fresh() if self._circle.entered else ():
            self._tally.say(f"peer {peer}", f"round {entered}: peer {peer} takes part from here on", changes=True)
        self._circle.entered = True
        self._events.begin_round(entered, before, round, self.open())
        self._circle.stir()
        open_ = {peer: link.since for peer, link in self._agreement.links.items() if link.open_in(entered)}
        return entered, open_

    def open(self) -> set[int]:
        """The peers whose links are open in this round."""
        entered = self._agreement.entered
        return {peer for peer, link in self._agreement.links.items() if link.open_in(entered)}

    async def swap(self, step: int, messages: Mapping[int, bytes], awaited: Collection[int]) -> dict[int, bytes]:
        """Send the messages, and return those of the awaited peers whose links are open and stay so."""
        links, round = self._agreement.links, self._agreement.entered
        number, began = number_of(round, step), self._circle.now()
        for peer, data in messages.items():
            if links[peer].open_in(round):
                links[peer].sent.setdefault(number, data)
        self._circle.stir()
        expected = [peer for peer in sorted(awaited) if peer in links]
        while missing := [
            peer for peer in expected if number not in links[peer].arrived and links[peer].open_in(round)
        ]:
            now = self._circle.now()
            deadlines = {peer: self._deadline(peer, began) for peer in missing}
            lost = {peer: why for peer, (deadline, why) in deadlines.items() if now >= deadline}
            lost |= {peer: f"it sent nothing in step {step}" for peer in missing if links[peer].lacks > number}
            for peer, why in lost.items():
                self._circle.lose(peer, why)
            if not lost:
                await self._circle.change(min(deadline for deadline, _ in deadlines.values()))
        found = {peer: links[peer].arrived[number] for peer in expected if number in links[peer].arrived}
        for peer in found:
            self._events.heard(peer)
        for link in links.values():
            link.forget(number)
        self._circle.stir()
        return found

    def _deadline(self, peer: int, began: float) -> tuple[float, str]:
        """Until when a neighbour is awaited, and what is said if it does not come."""
        ours = self._settings
        if talk := self._circle.talks.get(peer):
            until = min(max(began, talk.heard) + ours.timeout, began + ours.wait + 2 * ours.timeout)
            return until, f"no message in {ours.timeout:g} s"
        reason = self._circle.said.get(peer)
        return self._circle.gone[peer] + ours.grace, f"gone for {ours.grace:g} s{f' ({reason})' if reason else ''}"

    async def leave(self) -> None:
        """Say that this round was the last one, and wait until the neighbours need nothing of it any more."""
        self._agreement.leave()
        self._events.end_round(self._agreement.last, self.open())
        self._events.leave(self._agreement.last)
        self._circle.stir()
        until = self._circle.now() + self._settings.grace
        links = self._agreement.links.values()
        last = self._agreement.last
        while any(not link.finished and link.open_in(last) for link in links):
            if not await self._circle.change(until):
                break
        while any(not talk.idle() for talk in self._circle.talks.values()):
            if not await self._circle.change(min(until, self._circle.now() + 0.05)) and self._circle.now() >= until:
                break
