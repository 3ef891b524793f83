"""Which client each node of a Grid is: it is asked when it comes, and checked before it takes part."""

import math
import re
import time
from collections.abc import Callable

from flwr.app import Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedshare._proto.payload_pb2 import Attendance, Initial
from fedshare.errors import NAME, brief
from fedshare.forms import wire
from fedshare.forms.wire import Limits
from fedshare.machine.tally import Tally
from fedshare.payload import Payload, Quota
from fedshare.population import Counts
from fedshare.transport.flower.participant import INITIAL as GROUP
from fedshare.transport.flower.participant import Terms
from fedshare.transport.flower.private import names_of
from fedshare.transport.flower.reading import unwrapped
from fedshare.transport.flower.records import wrap

ATTEND, INITIAL = "query.attend", "query.initial"
_AGAIN = 15.0  # seconds after which a node that does not take part is asked again


class Joining:
    """The nodes of `grid` and their clients, of which there are `everyone`; `run` names the run.

    `counts` checks how many examples each says that it has. `refusal` is called with the reason, and the client where
    it is known, when a node may not take part. `slack`: bytes that an answer may have beside what is expected of it.
    """

    def __init__(
        self,
        grid: Grid,
        terms: Terms,
        run: bytes,
        everyone: int,
        counts: Counts | None,
        refusal: Callable[[str, int | None], None],
        slack: int,
        tally: Tally,
    ) -> None:
        self.attendance: dict[int, Attendance] = {}  # by client
        self.nodes: dict[int, int] = {}  # by client
        self.refused: dict[int, str] = {}  # by node: why it does not take part
        self.begun = False  # who joins from now on is said
        self._grid, self._terms, self._run, self._everyone = grid, terms, run, everyone
        self._counts, self._refusal, self._tally = counts, refusal, tally
        self._allow: Callable[[dict[int, tuple[int, int]]], None] = getattr(grid, "allow", lambda _: None)
        self._short = Limits.of(Quota(), slack)  # of what is no answer to a download
        self._called: dict[int, str] = {}  # by node: how lines name it
        # message -> node and its name, of those that have not said who they are
        self._invited: dict[str, tuple[int, str]] = {}
        self._begun_with = set[str]()  # messages that held the initial model
        self._ask_at: dict[int, float] = {}  # node -> when to ask it again

    @property
    def invited(self) -> int:
        """How many nodes are asked who they are, and have not answered."""
        return len(self._invited)

    def reasons(self) -> str:
        """Why nodes do not take part, as the end of a line."""
        return "".join(f"; {self._called[node]}: {reason}" for node, reason in sorted(self.refused.items()))

    def here(self) -> list[int]:
        """The clients that take part now, sorted; nodes that are new are asked who they are."""
        self._tally.flush()
        here = set(self._grid.get_node_ids())
        self._invite(here)
        while self._invited and (replies := list(self._grid.pull_messages(list(self._invited)))):
            for reply in replies:
                id = reply.metadata.reply_to_message_id
                node, name = self._invited.pop(id)
                self._called[node] = _called(node, name)
                try:
                    attendance = Attendance.FromString(unwrapped(reply, self._short)[0])
                    attendance.host, attendance.device = (
                        brief(text, NAME) for text in (attendance.host, attendance.device)
                    )
                    if attendance.needs_initial:
                        self._send_initial(node, name, again=id in self._begun_with)
                    else:
                        self._admit(node, _registered(name), attendance, here)
                except (ValueError, DecodeError) as error:
                    self._refuse(node, _registered(name), brief(str(error)))
        return sorted(client for client, node in self.nodes.items() if node in here)

    def _invite(self, here: set[int]) -> None:
        now = time.monotonic()
        for node in (self._called.keys() | self._ask_at.keys()) - here:  # one that comes back is asked anew
            self._ask_at.pop(node, None)
            self._called.pop(node, None)
            self.refused.pop(node, None)
        if new := sorted(node for node in here if self._ask_at.get(node, now) <= now):
            content = wrap(self._terms.invitation().SerializeToString())
            self._allow(dict.fromkeys(new, self._short.bytes))
            ids = self._grid.push_messages([Message(content, node, ATTEND) for node in new])
            names = names_of(self._grid)  # now: a node that is away when it has failed to answer has none then
            self._invited |= {id: (node, names.get(node, "")) for id, node in zip(ids, new, strict=True)}
            self._ask_at |= dict.fromkeys(new, math.inf)

    def _send_initial(self, node: int, name: str, again: bool) -> None:
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
        self._invited[id] = node, name
        self._begun_with.add(id)

    def _admit(self, node: int, registered: int | None, attendance: Attendance, here: set[int]) -> None:
        """Raises ValueError where a node says that it is another client, or has other examples, than it can."""
        client = attendance.client
        if registered not in (None, client):
            raise ValueError(f"it says that it is client {client}, but it is registered as client {registered}")
        if not client < self._everyone:
            raise ValueError(f"it says that it is client {client}, and there are {self._everyone}")
        other = self.nodes.get(client, node)
        if other != node and other in here:
            raise ValueError(f"it says that it is client {client}, and so does node {other}")
        if self._counts is not None:
            self._counts.declare(client, attendance.examples, attendance.tests, attendance.validation)
        if self.begun or node in self.refused:
            about = f"{attendance.host}, {attendance.device}, {attendance.examples} examples"
            self._tally.say(f"client {client}", f"client {client} takes part: {about}", changes=True)
        self.refused.pop(node, None)
        self.nodes[client], self.attendance[client] = node, attendance

    def _refuse(self, node: int, client: int | None, reason: str) -> None:
        if self.refused.get(node) != reason:
            self._refusal(reason, client)
            called = self._called[node]
            self._tally.say(called, f"{called} does not take part, and is asked again in {_AGAIN:g} s: {reason}")
        self.refused[node] = reason
        self._ask_at[node] = time.monotonic() + _AGAIN


def _registered(name: str) -> int | None:
    """The client as which a node is registered: by our own grids always, in Flower's fleets perhaps."""
    found = re.fullmatch(r"client-(0|[1-9][0-9]{0,8})", name)
    return int(found[1]) if found else None


def _called(node: int, name: str) -> str:
    if (client := _registered(name)) is not None:
        return f"client {client}"
    return f"node {node} ({brief(name, NAME)!r})" if name else f"node {node}"
