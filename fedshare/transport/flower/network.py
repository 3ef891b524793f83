"""The clients of a Flower Grid, as a `Network`."""

import math
import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cache
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedshare._proto.payload_pb2 import Attendance, Contents, Initial, Leaf, Reply, Request
from fedshare.errors import NAME, RunHalted, UserError, brief
from fedshare.forms import wire
from fedshare.forms.wire import Limits
from fedshare.machine.tally import Tally
from fedshare.network import LATE, Exchange, Heard, NotAwaited, Purpose, Quotas
from fedshare.payload import Payload, Quota, same_tensors
from fedshare.population import Counts
from fedshare.state import State
from fedshare.transport.flower import private
from fedshare.transport.flower.participant import INITIAL as GROUP
from fedshare.transport.flower.participant import Terms
from fedshare.transport.flower.private import RAISED, names_of
from fedshare.transport.flower.records import unwrap, wrap
from fedshare.transport.pace import Deadline, Pace
from fedshare.transport.suspension import Suspensions

ATTEND, INITIAL = "query.attend", "query.initial"
_POLL = 0.5  # seconds between looks at a Grid that cannot wait: each is a request to Flower's SuperLink
_NOTES = 5.0  # seconds between lines about what is waited for
_AGAIN = 15.0  # seconds after which a node that does not take part is asked again


class Versions:
    """The memories that clients keep themselves: here after which round each last had one."""

    remote = True

    def __init__(self, suspensions: Suspensions) -> None:
        self.versions: dict[int, int] = {}  # by client: the round after which we last heard of its memory
        self.oldest = 0  # the round of the oldest checkpoint
        self.suspensions = suspensions
        self.round = 0  # the last

    def heard(self, round: int, memories: dict[int, dict[str, str]]) -> None:
        self.versions |= {client: round if leaves else 0 for client, leaves in memories.items()}

    def remember(self) -> dict[int, State]:
        self.suspensions.begin(self.round + 1)  # the one that is over counts
        held = self.suspensions.remember()
        known = sorted(self.versions.keys() | held.keys())
        return {client: {"round": self.versions.get(client, 0)} | held.get(client, {}) for client in known}

    def recall(self, memories: dict[int, State], round: int) -> None:
        self.versions = {client: memory["round"] for client, memory in memories.items()}
        self.suspensions.recall(memories)
        self.round = round

    def keep(self, round: int) -> None:
        self.oldest = round


class FlowerNetwork:
    """A `Network` on any Grid, whose clients keep their memories themselves.

    `run` names the run whose memories they are to use; `timeout` is how many seconds a client may take for an answer,
    and `pace` who is waited for no longer, or not asked at all for a while. The first round waits for `clients` of
    `everyone`, a later one for half as many, both up to `patience` seconds. A node is asked who it is when it comes;
    then its client takes part whenever the Grid lists the node. A client that raises is absent from the round, or with
    ``on_error="halt"`` ends the run. `declared` hears how many examples a client says it has, and raises ValueError
    where that cannot be. `refusal` hears why a node does not take part, and of which client it is, as far as is known.
    An answer may be twice as large as is expected, and `slack` bytes; `parts` is how many tensors a whole model has.
    `ready` is called before a round, and while clients are waited for: it raises where there is to be none.
    """

    def __init__(
        self,
        grid: Grid,
        terms: Terms,
        run: bytes,
        timeout: float,
        everyone: int,
        clients: int = 1,
        patience: float = 600.0,
        say: Callable[[str], None] = print,
        on_error: Literal["halt", "drop"] = "drop",
        declared: Counts | None = None,
        refusal: Callable[[str, int | None], None] = lambda reason, client: None,
        slack: int = wire.SLACK,
        parts: int = 0,
        ready: Callable[[], None] = lambda: None,
        pace: Pace = Pace(),  # noqa: B008  # frozen
    ) -> None:
        self.attendance: dict[int, Attendance] = {}  # by client
        self.refused: dict[int, str] = {}  # by node: why it does not take part
        self._grid, self._terms, self._run = grid, terms, run
        self._pace, grace = pace, getattr(grid, "grace", 0.0)
        self._deadlines = {purpose: Deadline(pace, timeout, grace) for purpose in Purpose}
        self._suspended: dict[int, str] = {}
        self._declared, self._refusal, self._ready = declared, refusal, ready
        self._halts = on_error == "halt"
        self._everyone, self._needed, self._patience, self._say = everyone, clients, patience, say
        self._wait: Callable[[float], None] = getattr(grid, "wait", lambda _: time.sleep(_POLL))
        self._allow: Callable[[dict[int, tuple[int, int]]], None] = getattr(grid, "allow", lambda _: None)
        self._slack, self._parts = slack, parts
        self._short = Limits.of(Quota(), slack)  # of what is no answer to a download
        self._tally = Tally(lambda line: self._say(line))
        self._give_up: Callable[[set[str]], None] = getattr(grid, "give_up", lambda _: None)
        self._nodes: dict[int, int] = {}  # client -> node
        self._called: dict[int, str] = {}  # by node: how lines name it
        self._invited: dict[str, int] = {}  # message -> node, those that have not said who they are
        self._begun_with = set[str]()  # messages that held the initial model
        self._ask_at: dict[int, float] = {}  # node -> when to ask it again
        self._begun = False
        self.memories = Versions(Suspensions(pace.suspend_after))

    # Who is there.

    def client_ids(self) -> list[int]:
        needed = (self._needed + 1) // 2 if self._begun else self._needed
        until = time.monotonic() + self._patience
        noted = time.monotonic() - _NOTES + 1.0
        self._ready()
        while len(here := self._here()) < needed:
            self._ready()
            names = ", ".join(map(str, here)) or "none"
            why = "".join(f"; {self._called[node]}: {reason}" for node, reason in sorted(self.refused.items()))
            if (left := until - time.monotonic()) <= 0:
                raise RunHalted(f"waited {self._patience:g} s for {needed} clients; have {names}{why}")
            if getattr(self._grid, "complete", False):
                raise UserError(f"{needed} clients are waited for, and {len(here)} take part: --nodes {needed}?{why}")
            if time.monotonic() - noted >= _NOTES:
                noted = time.monotonic()
                joining = f"; getting ready: {len(self._invited)}" if self._invited else ""
                self._say(f"waiting for {needed} clients, up to {left:.0f} s more; here: {names}{joining}")
            self._wait(min(0.1, left))
            time.sleep(0.01)  # any message wakes a wait
        self._begun = True
        return self._able(here, needed)

    def _able(self, here: list[int], needed: int) -> list[int]:
        """Without those who are suspended; where the others are too few, they are tried again before their time."""
        told, suspended = self._suspended, self.memories.suspensions.begin(self.memories.round + 1)
        able = [client for client in here if client not in suspended]
        if len(able) < needed:
            able, suspended = here, {}
        self._suspended = {client: why for client, why in suspended.items() if client in here}
        for client, why in self._suspended.items():
            if told.get(client) != why:
                self._tally.say(f"client {client}", f"client {client} is suspended: {why}", changes=True)
        return able

    def _here(self) -> list[int]:
        self._tally.flush()
        here, now = set(self._grid.get_node_ids()), time.monotonic()
        # Who comes back is asked anew.
        self._ask_at = {node: at for node, at in self._ask_at.items() if node in here}
        self.refused = {node: reason for node, reason in self.refused.items() if node in here}
        if new := sorted(node for node in here if self._ask_at.get(node, now) <= now):
            content = wrap(self._terms.invitation().SerializeToString())
            self._allow(dict.fromkeys(new, self._short.bytes))
            ids = self._grid.push_messages([Message(content, node, ATTEND) for node in new])
            self._invited |= zip(ids, new, strict=True)
            self._ask_at |= dict.fromkeys(new, math.inf)
        while self._invited and (replies := list(self._grid.pull_messages(list(self._invited)))):
            names = names_of(self._grid)
            for reply in replies:
                id = reply.metadata.reply_to_message_id
                node = self._invited.pop(id)
                name = names.get(node, "")
                self._called[node] = _called(node, name)
                try:
                    attendance = Attendance.FromString(_unwrapped(reply, self._short)[0])
                    attendance.host, attendance.device = (
                        brief(text, NAME) for text in (attendance.host, attendance.device)
                    )
                    if attendance.needs_initial:
                        self._begin(node, again=id in self._begun_with)
                    else:
                        self._admit(node, name, attendance, here)
                except (ValueError, DecodeError) as error:
                    self._refuse(node, _registered(name), brief(str(error)))
        return sorted(client for client, node in self._nodes.items() if node in here)

    def _begin(self, node: int, again: bool) -> None:
        """Send a node what we have drawn of the initial model: on another kind of processor torch draws other bits."""
        if again:
            raise ValueError("it does not take the server's initial model")
        called = self._called[node]
        self._tally.say(called, f"{called} makes another initial model of the same config, and is sent the server's")
        contents, data = wire.pack(Payload({GROUP: self._terms.drawn()}))
        initial = Initial(invitation=self._terms.invitation(), run=self._run, model=contents)
        message = Message(wrap(initial.SerializeToString(), data), node, INITIAL)
        self._allow({node: self._short.bytes})
        (id,) = self._grid.push_messages([message])
        self._invited[id] = node
        self._begun_with.add(id)

    def _admit(self, node: int, name: str, attendance: Attendance, here: set[int]) -> None:
        """Raises ValueError where a node says that it is somebody else."""
        client = attendance.client
        if (registered := _registered(name)) not in (None, client):
            raise ValueError(f"it says that it is client {client}, but it is registered as client {registered}")
        if not client < self._everyone:
            raise ValueError(f"it says that it is client {client}, and there are {self._everyone}")
        other = self._nodes.get(client, node)
        if other != node and other in here:
            raise ValueError(f"it says that it is client {client}, and so does node {other}")
        if self._declared is not None:
            self._declared.declare(client, attendance.examples, attendance.tests, attendance.validation)
        if self._begun or node in self.refused:
            about = f"{attendance.host}, {attendance.device}, {attendance.examples} examples"
            self._tally.say(f"client {client}", f"client {client} takes part: {about}", changes=True)
        self.refused.pop(node, None)
        self._nodes[client], self.attendance[client] = node, attendance

    def _refuse(self, node: int, client: int | None, reason: str) -> None:
        if self.refused.get(node) != reason:
            self._refusal(reason, client)
            called = self._called[node]
            self._tally.say(called, f"{called} does not take part, and is asked again in {_AGAIN:g} s: {reason}")
        self.refused[node] = reason
        self._ask_at[node] = time.monotonic() + _AGAIN

    # The exchange.

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        heard = heard or (lambda *_: None)
        absent = dict.fromkeys(downloads.keys() - self._nodes.keys(), "not connected")
        self.memories.round = round
        clients = sorted(downloads.keys() & self._nodes.keys())
        requests = self._requests(purpose, round, {client: downloads[client] for client in clients})
        messages = [
            private.asked(content, self._nodes[client], purpose.value, str(round))
            for client, content in zip(clients, requests, strict=True)
        ]
        answers, memories = dict[int, Payload](), dict[int, dict[str, str]]()
        bounded = cache(lambda quota: Limits.of(quota, self._slack, self._parts))
        limits = {client: bounded(quotas(client)) if quotas else None for client in clients}
        self._allow({self._nodes[client]: most.bytes for client, most in limits.items() if most})
        heard(purpose, round, 0, len(clients))
        waiting = dict(zip(self._grid.push_messages(messages), clients, strict=True))
        began, slowest, punctual = time.monotonic(), 0.0, set[int]()
        for number, (client, reply) in enumerate(self._collect(purpose, waiting, began, answers, absent), 1):
            heard(purpose, round, number, len(clients))
            if self._halts and reply.has_error() and reply.error.code == RAISED:
                raise RunHalted(f"round {round}: client {client}: {brief(reply.error.reason or 'raised an error')}")
            try:
                answers[client], memories[client] = _read(reply, limits[client])
                slowest = time.monotonic() - began
            except (ValueError, DecodeError) as error:
                absent[client] = brief(str(error))
                if reply.has_error() and reply.error.code == RAISED:  # that is an answer, too, and cost no time
                    punctual.add(client)
        if answers:
            self._deadlines[purpose].saw(slowest)
        late = {c: why for c, why in absent.items() if c not in punctual and not isinstance(why, NotAwaited)}
        self.memories.suspensions.heard(punctual | answers.keys(), late)
        found = Exchange(dict(sorted(answers.items())), absent, suspended=self._suspended)
        if purpose is not Purpose.TRAIN:
            return found
        self.memories.heard(round, memories)
        return replace(found, digests=dict(sorted(memories.items())))

    def _requests(self, purpose: Purpose, round: int, downloads: dict[int, Payload]) -> Iterable[RecordDict]:
        last: tuple[Payload, Contents, bytes] | None = None
        made: dict[int, RecordDict] = {}  # of the last download, by what its client remembers: messages share them
        terms = self._terms.short
        for client, download in downloads.items():
            if last is None or not same_tensors(last[0], download) or last[0].metrics != download.metrics:
                contents, data = wire.pack(download)
                last, made = (download, contents, bytes(data)), {}
            base = self.memories.versions.get(client, 0)
            if base not in made:
                request = Request(round=round, base=base, keep=self.memories.oldest, run=self._run, terms=terms)
                request.download.CopyFrom(last[1])
                made[base] = wrap(request.SerializeToString(), last[2])
            yield made[base]

    def _collect(
        self,
        purpose: Purpose,
        waiting: dict[str, int],
        began: float,
        answers: Collection[int],
        absent: dict[int, str],
    ) -> Iterable[tuple[int, Message]]:
        """The replies to messages by id, as they come, until the deadline, or until `answers` are enough of them.

        Adds to `absent` whose reply is not waited for any longer, and why.
        """
        seconds, late, asked = self._deadlines[purpose].seconds(), False, len(waiting)
        until, enough = began + seconds, self._pace.enough(asked)
        while waiting:
            for reply in self._grid.pull_messages(list(waiting)):
                yield waiting.pop(reply.metadata.reply_to_message_id), reply
            why = f"no answer in {seconds:g} s" if late else ""
            if waiting and len(answers) >= enough:
                why = NotAwaited(f"{LATE}{len(answers)} of {asked} had answered (quorum={self._pace.quorum:g})")
            if why:
                absent |= dict.fromkeys(waiting.values(), why)
                self._give_up(set(waiting))
                return
            if waiting:
                self._wait(max(0.0, until - time.monotonic()))
                late = time.monotonic() >= until  # then one more look: reading may have taken all the time there was


def _registered(name: str) -> int | None:
    """The client as which a node is registered: by our own grids always, by an operator of Flower's where he likes."""
    found = re.fullmatch(r"client-(0|[1-9][0-9]{0,8})", name)
    return int(found[1]) if found else None


def _called(node: int, name: str) -> str:
    if (client := _registered(name)) is not None:
        return f"client {client}"
    return f"node {node} ({brief(name, NAME)!r})" if name else f"node {node}"


def _content(reply: Message) -> RecordDict:
    if reply.has_error():
        raise ValueError(reply.error.reason or f"Flower's error {reply.error.code}")
    return reply.content


def _is_digest(leaf: Leaf) -> bool:
    return len(leaf.sha256) == 32 and 0 < len(leaf.path) <= 500 and leaf.path.isprintable()


def _unwrapped(message: Message, limits: Limits | None) -> tuple[bytes, bytes]:
    """Head and tensors. On Flower's own way they have arrived, however long; they are not read."""
    head, tensors = unwrap(_content(message))
    if limits and (len(head) > limits.head or len(head) + len(tensors) > limits.body):
        most = f"at most {limits.head} and {limits.body} are taken"
        raise ValueError(f"it sent {len(head)} bytes, and {len(tensors)} of tensors; {most}")
    return head, tensors


def _read(message: Message, limits: Limits | None) -> tuple[Payload, dict[str, str]]:
    head, tensors = _unwrapped(message, limits)
    reply, most = Reply.FromString(head), limits.leaves if limits else wire.MOST_TENSORS
    if len(reply.memory) > most:
        raise ValueError(f"it holds {len(reply.memory)} digests of its memory; at most {most} are taken")
    if not all(_is_digest(leaf) for leaf in reply.memory):
        raise ValueError("digests of its memory that are none")
    return wire.unpack(reply.upload, tensors, limits), {leaf.path: leaf.sha256.hex() for leaf in reply.memory}
