"""What our Grids have in common: clients are small integers, and every message gets one reply, be it an error."""

import itertools
import time
from abc import abstractmethod
from collections.abc import Iterable

from flwr.app import DEFAULT_TTL, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedshare.errors import brief
from fedshare.transport.flower import private
from fedshare.transport.flower.private import SERVER_NODE, UNAVAILABLE, NodeInfo, Run
from fedshare.transport.flower.waiting import Waiting

_FIRST_NODE = 2  # Flower's 1 is the server


def node_of(client: int) -> int:
    return client + _FIRST_NODE


def client_of(node: int) -> int:
    return node - _FIRST_NODE


class OwnGrid(Grid):
    """A Grid whose node ids are those of the clients, plus 2."""

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self._run = private.enter_run()
        self._ids = map(str, itertools.count(1))
        self._replies: dict[str, Message] = {}  # those that nobody has asked for yet, by the id of what they answer
        self.failures: dict[int, str] = {}  # what went wrong at each client, the last time it was asked

    @abstractmethod
    def _present(self) -> list[int]:
        """The nodes that are there."""

    @abstractmethod
    def _send(self, message: Message) -> None:
        """See to it that `message`, which has an id, is answered by a call of `_answered`."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Until a reply has come, or `timeout` seconds are over."""

    def give_up(self, ids: set[str]) -> None:
        """Nobody will ask for the replies to these messages."""

    def _answered(self, id: str, reply: Message) -> None:
        client = client_of(reply.metadata.src_node_id)
        if reply.has_error():
            self.failures[client] = brief(reply.error.reason or f"error {reply.error.code}")
        else:
            self.failures.pop(client, None)
        self._replies[id] = reply

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        self.waiting.asked()
        return self._present()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [private.named(node, f"client-{client_of(node)}") for node in self.get_node_ids()]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(next(self._ids))
            private.number(message, ids[-1])
            with self.waiting.sending():
                self._send(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(id) for id in message_ids if id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        until = time.monotonic() + (DEFAULT_TTL if timeout is None else timeout)
        wanted = set(self.push_messages(messages))
        replies: list[Message] = []
        while wanted and (left := until - time.monotonic()) > 0:
            self.wait(left)
            here = sorted(wanted & self._replies.keys(), key=int)
            replies += [self._replies.pop(id) for id in here]
            wanted -= set(here)
        self.give_up(wanted)
        return replies


def arrived(node: int, id: str, type: str, group: str, content: RecordDict) -> Message:
    """An instruction as `node` gets it."""
    about = Metadata(1, id, SERVER_NODE, node, "", group, time.time(), DEFAULT_TTL, type)
    return private.received(about, content, None)


def reply(node: int, to: str, type: str, group: str, content: RecordDict | None, error: Error | None) -> Message:
    """A reply as the server gets it."""
    about = Metadata(1, f"{to}-reply", node, SERVER_NODE, to, group, time.time(), DEFAULT_TTL, type)
    return private.received(about, content, error)


def unavailable(node: int, to: str, reason: str) -> Message:
    return reply(node, to, "query", "", None, Error(UNAVAILABLE, reason))
