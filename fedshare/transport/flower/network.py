"""The clients of a Flower Grid, as a `Network`."""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cache
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedshare._proto.payload_pb2 import Contents, Request
from fedshare.errors import RunHalted, UserError, brief
from fedshare.forms import wire
from fedshare.forms.wire import Limits
from fedshare.machine.tally import Tally
from fedshare.network import LATE, Exchange, Heard, NotAwaited, Purpose, Quotas
from fedshare.payload import Payload, same_tensors
from fedshare.population import Counts
from fedshare.transport.flower import private
from fedshare.transport.flower.joining import Joining
from fedshare.transport.flower.participant import Terms
from fedshare.transport.flower.private import RAISED
from fedshare.transport.flower.reading import read
from fedshare.transport.flower.records import wrap
from fedshare.transport.flower.versions import Versions
from fedshare.transport.pace import Deadline, Pace
from fedshare.transport.suspension import Suspensions

_POLL = 0.5  # seconds between looks at a Grid that cannot wait: each is a request to Flower's SuperLink
_NOTES = 5.0  # seconds between lines about what is waited for


class FlowerNetwork:
    """A `Network` on any Grid, whose clients keep their memories themselves.

    `run` names the run whose memories they are to use; `timeout` is how many seconds a client may take for an answer,
    and `pace` says which clients are waited for no longer, or not asked at all for a while. The first round waits for
    `clients` of `everyone`, a later one for half as many, both up to `patience` seconds. A node is asked which client
    it is when it comes; then that client takes part whenever the Grid lists the node. A client that raises is absent
    from the round, or with ``on_error="halt"`` ends the run. `declared` is called with how many examples a client says
    it has, and raises ValueError where that cannot be. `refusal` is called with the reason, and the client where it is
    known, when a node may not take part. An answer may be twice as large as is expected, and `slack` bytes; `parts` is
    how many tensors a whole model has. `ready` is called before a round, and while clients are waited for: it raises
    where there is to be none.
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
        self._grid, self._terms, self._run = grid, terms, run
        self._pace, grace = pace, getattr(grid, "grace", 0.0)
        self._deadlines = {purpose: Deadline(pace, timeout, grace) for purpose in Purpose}
        self._suspended: dict[int, str] = {}
        self._halts, self._ready = on_error == "halt", ready
        self._needed, self._patience, self._say = clients, patience, say
        self._wait: Callable[[float], None] = getattr(grid, "wait", lambda _: time.sleep(_POLL))
        self._allow: Callable[[dict[int, tuple[int, int]]], None] = getattr(grid, "allow", lambda _: None)
        self._give_up: Callable[[set[str]], None] = getattr(grid, "give_up", lambda _: None)
        self._slack, self._parts = slack, parts
        self._tally = Tally(say)
        self._joining = Joining(grid, terms, run, everyone, declared, refusal, slack, self._tally)
        self.attendance, self.refused = self._joining.attendance, self._joining.refused
        self.memories = Versions(Suspensions(pace.suspend_after))

    # Who is there.

    def client_ids(self) -> list[int]:
        needed = (self._needed + 1) // 2 if self._joining.begun else self._needed
        until = time.monotonic() + self._patience
        noted = time.monotonic() - _NOTES + 1.0
        self._ready()
        while len(here := self._joining.here()) < needed:
            self._ready()
            names = ", ".join(map(str, here)) or "none"
            why = self._joining.reasons()
            if (left := until - time.monotonic()) <= 0:
                raise RunHalted(f"waited {self._patience:g} s for {needed} clients; have {names}{why}")
            if getattr(self._grid, "complete", False):
                raise UserError(f"{needed} clients are waited for, and {len(here)} take part: --nodes {needed}?{why}")
            if time.monotonic() - noted >= _NOTES:
                noted = time.monotonic()
                joining = f"; getting ready: {self._joining.invited}" if self._joining.invited else ""
                self._say(f"waiting for {needed} clients, up to {left:.0f} s more; here: {names}{joining}")
            self._wait(min(0.1, left))
            time.sleep(0.01)  # any message wakes a wait
        self._joining.begun = True
        return self._able(here, needed)

    def _able(self, here: list[int], needed: int) -> list[int]:
        """Those that are not suspended; where they are too few, the others are tried again before their time."""
        told, suspended = self._suspended, self.memories.suspensions.begin(self.memories.round + 1)
        able = [client for client in here if client not in suspended]
        if len(able) < needed:
            able, suspended = here, {}
        self._suspended = {client: why for client, why in suspended.items() if client in here}
        for client, why in self._suspended.items():
            if told.get(client) != why:
                self._tally.say(f"client {client}", f"client {client} is suspended: {why}", changes=True)
        return able

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
        absent = dict.fromkeys(downloads.keys() - self._joining.nodes.keys(), "not connected")
        self.memories.round = round
        clients = sorted(downloads.keys() & self._joining.nodes.keys())
        requests = self._requests(purpose, round, {client: downloads[client] for client in clients})
        messages = [
            private.asked(content, self._joining.nodes[client], purpose.value, str(round))
            for client, content in zip(clients, requests, strict=True)
        ]
        answers, memories = dict[int, Payload](), dict[int, dict[str, str]]()
        bounded = cache(lambda quota: Limits.of(quota, self._slack, self._parts))
        limits = {client: bounded(quotas(client)) if quotas else None for client in clients}
        self._allow({self._joining.nodes[client]: most.bytes for client, most in limits.items() if most})
        heard(purpose, round, 0, len(clients))
        waiting = dict(zip(self._grid.push_messages(messages), clients, strict=True))
        began, slowest, punctual = time.monotonic(), 0.0, set[int]()
        for number, (client, reply) in enumerate(self._collect(purpose, waiting, began, answers, absent), 1):
            heard(purpose, round, number, len(clients))
            if self._halts and reply.has_error() and reply.error.code == RAISED:
                raise RunHalted(f"round {round}: client {client}: {brief(reply.error.reason or 'raised an error')}")
            try:
                answers[client], memories[client] = read(reply, limits[client])
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
