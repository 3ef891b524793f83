"""The messages for one client, one at a time, whatever becomes of its connections."""

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
    given_up: bool = False  # nobody waits for the answer
    told: bool = False  # the client was told so, on this connection
    limit: int | None = None  # bytes that its answer may have


@dataclass(frozen=True)
class Response:
    """What became of the message with this ticket: the bytes of its answer, or why there is none."""

    ticket: int
    client: int
    body: bytearray | None
    reason: str = ""


@dataclass(eq=False)
class Mailbox:
    waiting: deque[Message] = field(default_factory=deque)
    current: Message | None = None  # the one its client works on: it has no more than one
    counted: int = 0  # the number of the last message

    def put(self, message: Message) -> None:
        self.waiting.append(message)
        self._advance()

    def forget(self, tickets: set[int]) -> None:
        """Wait no longer for these answers. A message that was not sent yet never will be."""
        self.waiting = deque(message for message in self.waiting if message.ticket not in tickets)
        if self.current and self.current.ticket in tickets:
            self.current.given_up = True
            if not self.current.sent:
                self._finish()

    def resume(self, received: int) -> int:
        """Go on on a new connection whose client holds messages up to `received`; return the last one answered."""
        current = self.current
        if current is None:
            return self.counted
        current.sent, current.told = received >= current.number, False
        if current.given_up and not current.sent:
            self._finish()
        return current.number - 1

    def answered(self) -> Message | None:
        """Mark the current message answered; return it unless it was given up."""
        message = self.current
        self._finish()
        return None if message is None or message.given_up else message

    def lost(self) -> list[Message]:
        """Empty the box, for its client is lost; return the messages whose answers somebody waits for."""
        messages = [message for message in [self.current, *self.waiting] if message and not message.given_up]
        self.current = None
        self.waiting.clear()
        return messages

    def _finish(self) -> None:
        self.current = None
        self._advance()

    def _advance(self) -> None:
        """Make the next message the current one, where the client is not at work on one."""
        if self.current is None and self.waiting:
            self.counted += 1
            self.current = self.waiting.popleft()
            self.current.number = self.counted
