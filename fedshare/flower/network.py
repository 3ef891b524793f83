"""The clients of a Flower Grid, as a `Network`."""

import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

import fedshare
from fedshare import wire
from fedshare._proto.payload_pb2 import Attendance, Contents, Invitation, Reply, Request
from fedshare.errors import RunHalted, UserError
from fedshare.flower.participant import Terms
from fedshare.flower.private import RAISED
from fedshare.flower.records import unwrap, wrap
from fedshare.network import Task
from fedshare.payload import Payload, same_tensors
from fedshare.state import State

ATTEND = "query.attend"
_POLL = 0.2  # seconds between looks at a Grid that cannot wait: each is a request to Flower's SuperLink
_NOTES = 5.0  # seconds between lines about what is waited for


class FlowerNetwork:
    """A `Network` on any Grid, whose clients keep their memories themselves.

    `run` names the run whose memories they are to use; `timeout` is how many seconds a client may take for a task. A
    round waits for `clients` clients, up to `patience` seconds. A node is asked once who it is; from then on its client
    takes part whenever the Grid lists the node, also one that comes late.
    """

    remote = True

    def __init__(
        self,
        grid: Grid,
        terms: Terms,
        run: bytes,
        timeout: float,
        clients: int = 1,
        patience: float = 600.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.attendance: dict[int, Attendance] = {}  # by client
        self.refused: dict[int, str] = {}  # by node: why it does not take part
        self._grid, self._terms, self._run, self._timeout = grid, terms, run, timeout
        self._clients, self._patience, self._say = clients, patience, say
        self._wait: Callable[[float], None] = getattr(grid, "wait", lambda seconds: time.sleep(min(seconds, _POLL)))
        self._nodes: dict[int, int] = {}  # client -> node
        self._invited: dict[str, int] = {}  # message -> node, those that have not said who they are
        self._asked: set[int] = set()  # nodes
        self._versions: dict[int, int] = {}  # client -> the round after which we last heard of its memory
        self._kept = 0  # the round of the oldest checkpoint there is
        self._digests: dict[int, dict[str, str]] = {}
        self._absent: dict[int, str] = {}

    # Who is there.

    def client_ids(self) -> list[int]:
        until = time.monotonic() + self._patience
        noted = time.monotonic() - _NOTES + 1.0
        while len(here := self._here()) < self._clients:
            names = ", ".join(map(str, here)) or "none"
            if (left := until - time.monotonic()) <= 0:
                raise RunHalted(f"waited {self._patience:g} s for {self._clients} clients; have {names}{self._why()}")
            if getattr(self._grid, "complete", False):
                raise UserError(f"{self._clients} clients are waited for, and there are {len(here)} nodes{self._why()}")
            if time.monotonic() - noted >= _NOTES:
                noted = time.monotonic()
                joining = f", {len(self._invited)} getting ready" if self._invited else ""
                self._say(f"waiting for {self._clients} clients, up to {left:.0f} s more: have {names}{joining}")
            self._wait(min(_POLL, left))
            time.sleep(0.01)
        return here

    def _why(self) -> str:
        return "".join(f"; node {node}: {why}" for node, why in sorted(self.refused.items()))

    def _here(self) -> list[int]:
        here = set(self._grid.get_node_ids())
        if new := here - self._asked:
            invitation = Invitation(version=fedshare.__version__)
            invitation.config_sha256, invitation.initial_sha256 = self._terms.config, self._terms.initial
            content = wrap(invitation.SerializeToString())
            nodes = sorted(new)
            ids = self._grid.push_messages([Message(content, node, ATTEND) for node in nodes])
            self._invited |= zip(ids, nodes, strict=True)
            self._asked |= new
        for reply in self._grid.pull_messages(list(self._invited)) if self._invited else ():
            self._attend(reply)
        return sorted(client for client, node in self._nodes.items() if node in here)

    def _attend(self, reply: Message) -> None:
        node = self._invited.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            return
        try:
            attendance = Attendance.FromString(unwrap(_content(reply))[0])
        except (ValueError, DecodeError) as error:
            self.refused[node] = str(error)
            if reply.has_error() and reply.error.code != RAISED:  # it did not answer: perhaps it will the next time
                self._asked.discard(node)
            return
        client = attendance.client
        if (other := self._nodes.get(client)) is not None and other != node and other in set(self._grid.get_node_ids()):
            self.refused[node] = f"it says that it is client {client}, and so does node {other}"
            return
        self.refused.pop(node, None)
        self._nodes[client], self.attendance[client] = node, attendance

    # The exchange.

    def exchange(self, task: Task, round: int, downloads: dict[int, Payload]) -> dict[int, Payload]:
        self._absent = dict.fromkeys(downloads.keys() - self._nodes.keys(), "not connected")
        clients = sorted(downloads.keys() & self._nodes.keys())
        requests = self._requests(task, round, {client: downloads[client] for client in clients})
        messages = [
            Message(content, self._nodes[client], task.value, group_id=str(round))
            for client, content in zip(clients, requests, strict=True)
        ]
        answers, memories = dict[int, Payload](), dict[int, dict[str, str]]()
        for client, reply in self._collect(dict(zip(self._grid.push_messages(messages), clients, strict=True))):
            try:
                answers[client], memories[client] = _read(reply)
            except (ValueError, DecodeError) as error:
                self._absent[client] = str(error)
        if task is Task.TRAIN:
            self._digests = dict(sorted(memories.items()))
            self._versions |= {client: round if leaves else 0 for client, leaves in memories.items()}
        return {client: answers[client] for client in sorted(answers)}

    def digests(self) -> dict[int, dict[str, str]]:
        return self._digests

    def absent(self) -> dict[int, str]:
        return self._absent

    def _requests(self, task: Task, round: int, downloads: dict[int, Payload]) -> Iterable[RecordDict]:
        last: tuple[Payload, Contents, bytearray] | None = None
        for client, download in downloads.items():
            if last is None or not same_tensors(last[0], download) or last[0].metrics != download.metrics:
                last = (download, *wire.pack(download))
            request = Request(round=round, base=self._versions.get(client, 0), keep=self._kept)
            request.run, request.terms = self._run, self._terms.short
            request.download.CopyFrom(last[1])
            yield wrap(request.SerializeToString(), last[2])

    def _collect(self, waiting: dict[str, int]) -> Iterable[tuple[int, Message]]:
        """The replies to messages by id, as they come, until the deadline."""
        until = time.monotonic() + self._timeout
        while waiting:
            for reply in self._grid.pull_messages(list(waiting)):
                yield waiting.pop(reply.metadata.reply_to_message_id), reply
            if waiting and (left := until - time.monotonic()) > 0:
                self._wait(left)
            elif waiting:
                self._absent |= dict.fromkeys(waiting.values(), f"no answer in {self._timeout:g} s")
                return

    # What a checkpoint holds of the clients.

    def remember(self) -> dict[int, State]:
        return {client: {"round": round} for client, round in sorted(self._versions.items())}

    def recall(self, memories: dict[int, State], round: int) -> None:
        self._versions = {client: memory["round"] for client, memory in memories.items()}

    def kept(self, round: int) -> None:
        self._kept = round


def _content(reply: Message) -> RecordDict:
    if reply.has_error():
        raise ValueError(reply.error.reason or f"Flower's error {reply.error.code}")
    return reply.content


def _read(message: Message) -> tuple[Payload, dict[str, str]]:
    head, tensors = unwrap(_content(message))
    reply = Reply.FromString(head)
    return wire.unpack(reply.upload, tensors), {leaf.path: leaf.sha256.hex() for leaf in reply.memory}
