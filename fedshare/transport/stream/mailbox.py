"""What one client is to have, one message at a time, whatever becomes of its connections."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedshare.transport.stream.frames import Buffer


@dataclass(eq=False)
class Message:
    ticket: int
    buffers: Sequence[Buffer]
    number: int = 0  # as its client counts; 0: not its turn yet
    sent: bool = False  # whole, on this connection or one before
    given_up: bool = False
    told: bool = False  # that it is given up, on this connection
    limit: int | None = None  # bytes that its answer may have


@dataclass(eq=False)
class Mailbox:
    waiting: deque[Message] = field(default_factory=deque)
    current: Message | None = None  # the one its client works on: it has no more than one
    counted: int = 0  # the number of the last

    def put(self, message: Message) -> None:
        self.waiting.append(message)
        self._turn()

    def _turn(self) -> None:
        """Let the client have its next message, where it is not at work on one."""
        if self.current is None and self.waiting:
            self.counted += 1
            self.current = self.waiting.popleft()
            self.current.number = self.counted

    def _done(self) -> None:
        self.current = None
        self._turn()

    def forget(self, tickets: set[int]) -> None:
        """Nobody wants these answers any more. What was not sent yet never will be."""
        self.waiting = deque(message for message in self.waiting if message.ticket not in tickets)
        if self.current and self.current.ticket in tickets:
            self.current.given_up = True
            if not self.current.sent:
                self._done()

    def resume(self, received: int) -> int:
        """Go on on a new connection, whose client holds messages up to `received`; give the last that was answered."""
        current = self.current
        if current is None:
            return self.counted
        current.sent, current.told = received >= current.number, False
        if current.given_up and not current.sent:
            self._done()
        return current.number - 1

    def answered(self) -> Message | None:
        """The current message is; which one that was, where its answer is still wanted."""
        message = self.current
        self._done()
        return None if message is None or message.given_up else message

    def lost(self) -> list[Message]:
        """The client is: empty the box, and give what somebody waits for."""
        messages = [message for message in [self.current, *self.waiting] if message and not message.given_up]
        self.current = None
        self.waiting.clear()
        return messages
