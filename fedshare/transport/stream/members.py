"""The clients of a server: who is connected, who may come back, and what is lost with a client that does not."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fedshare._proto.stream_pb2 import Down, Hello, Welcome
from fedshare.identity import certificates
from fedshare.transport.stream.connection import Connection
from fedshare.transport.stream.frames import FrameError
from fedshare.transport.stream.journal import Journal
from fedshare.transport.stream.mailbox import Mailbox, Message, Response
from fedshare.transport.stream.service import CLOSE_DEADLINE, refusal
from fedshare.transport.stream.settings import Settings

BROKEN = "the connection broke off"


@dataclass(eq=False)
class Member(Mailbox):
    id: int = 0
    connection: Connection | None = None
    absent: bool = False  # it does not count as there any more: its messages are lost
    gone: bool = False  # it was here, and is not connected
    expiry: asyncio.TimerHandle | None = None  # when it will be absent, unless it comes back
    caller: dict[str, str] = field(default_factory=dict)  # of its last connection, for the audit log

    def wake(self) -> None:
        if self.connection:
            self.connection.wake()


class Members:
    """All in the thread of `loop`, but for `present` and `connected`. `respond` takes what becomes of each message."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        epoch: bytes,
        journal: Journal,
        respond: Callable[[Response], None],
    ) -> None:
        self.present: frozenset[int] = frozenset()  # who is connected, or was a moment ago
        self.by_id: dict[int, Member] = {}
        self._loop, self._settings, self._epoch = loop, settings, epoch
        self._journal, self._respond = journal, respond
        self._closing = False

    def connected(self) -> list[Member]:
        return [member for member in list(self.by_id.values()) if member.connection is not None]

    async def serve(self, hello: Hello, connection: Connection) -> None:
        """Be connected with a client until its connection ends. Raises FrameError."""
        member = self.by_id.setdefault(hello.client, Member(id=hello.client))
        if member.connection:
            member.connection.hang_up(refusal(f"another process has connected as client {member.id}"))
        if member.expiry:
            member.expiry.cancel()
        member.connection, member.caller = connection, connection.caller
        self.warn(member)
        if member.gone:
            self._journal.tally.say(f"client {member.id}", f"client {member.id} is back", changes=True)
        member.absent, member.gone, reason = False, False, None
        try:
            answered = member.resume(hello.received if hello.epoch == self._epoch else 0)
            welcome = Welcome(epoch=self._epoch, answered=answered, config=self._settings.config)
            welcome.clients = self._settings.clients
            await connection.send(Down(welcome=welcome))
            self._joined(member)
            answer = lambda message, body: self._respond(Response(message.ticket, member.id, body))  # noqa: E731
            left = await connection.converse(member, self._settings.limit, answer)
            reason = "it left" if left else None
        except FrameError as error:
            reason = self._journal.refused[member.id] = f"it sent {error}"
            raise
        finally:
            self._ended(member, connection, reason)

    def expel(self, id: int, reason: str) -> None:
        """End the connection of a client at once; it hears why, and what it was to answer is lost."""
        member = self.by_id.get(id)
        if member is None or member.absent:
            return
        if member.expiry:
            member.expiry.cancel()
        if connection := member.connection:
            self._ended(member, connection, reason)  # so that what it still sends does not count
            connection.hang_up(refusal(f"client {id} was refused: {reason}"))
            self._loop.call_later(CLOSE_DEADLINE, connection.cut.set)  # even if it does not read
        else:
            self._record("gone", member, reason=reason)
            self._lose(member, reason)
        self._journal.refused[id] = reason

    def close(self, last: Down | None) -> None:
        """Send `last` to all who are connected; that a client leaves from now on is no news."""
        self._closing = True
        for member in self.connected():
            if member.connection and last:
                member.connection.hang_up(last)

    def put(self, id: int, message: Message) -> None:
        """Send a message after those before; one to a client that is absent is lost at once."""
        member = self.by_id.get(id)
        if member is None or member.absent:
            self._respond(Response(message.ticket, id, None, "not connected"))
        else:
            member.put(message)
            member.wake()

    def forget(self, tickets: set[int]) -> None:
        for member in self.by_id.values():
            member.forget(tickets)
            member.wake()

    def warn(self, member: Member) -> None:
        """Say if the certificate of a client ends soon."""
        pem = member.connection and member.connection.certificate
        if pem and (said := certificates.ending_of(pem)):
            line = f"client {member.id}'s certificate {said}: renew it with `fedshare keys`"
            self._journal.tally.say(f"the certificate of client {member.id}", line)

    def _joined(self, member: Member) -> None:
        self._journal.refused.pop(member.id, None)
        self._note_change()
        self._record("joined", member)

    def _ended(self, member: Member, connection: Connection, reason: str | None) -> None:
        """Handle a connection that has ended; without a reason, wait `grace` seconds for the client to come back."""
        if member.connection is not connection:
            return
        member.connection, member.gone = None, True
        grace = self._settings.grace
        if not self._closing:
            hope = "" if reason else f"; absent if it is not back in {grace:g} s"
            line = f"client {member.id} is gone: {reason or BROKEN}{hope}"
            self._journal.tally.say(f"client {member.id}", line, changes=True)
            self._record("gone", member, reason=reason or BROKEN)
        if reason:
            self._lose(member, reason)
        else:
            member.expiry = self._loop.call_later(grace, self._lose, member, f"gone since {grace:g} s ago")

    def _lose(self, member: Member, reason: str) -> None:
        member.absent = True
        for message in member.lost():
            self._respond(Response(message.ticket, member.id, None, reason))
        self._note_change()

    def _note_change(self) -> None:
        self.present = frozenset(member.id for member in self.by_id.values() if not member.absent)
        self._journal.changed.set()

    def _record(self, event: str, member: Member, **what: str) -> None:
        self._journal.record(event, f"client {member.id}", client=member.id, **member.caller, **what)
