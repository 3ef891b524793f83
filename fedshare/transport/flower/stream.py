"""Any Flower app over our gRPC stream: the Grid for its ServerApp, and the long life of a ClientApp."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedshare.errors import DiskError, RunHalted, UserError
from fedshare.transport.flower import private
from fedshare.transport.flower.envelope import seal, unseal
from fedshare.transport.flower.grid import OwnGrid, arrived, client_of, node_of, reply, unavailable
from fedshare.transport.flower.inprocess import ask
from fedshare.transport.flower.private import LEFT
from fedshare.transport.flower.waiting import Waiting
from fedshare.transport.stream.client import Last, StreamClient
from fedshare.transport.stream.frames import Buffer
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.turns import Welcomed

Most = tuple[int | None, int | None]  # bytes of an answer, and of its envelope; None: as many as the server takes
_ANY: Most = None, None
_MANY, _EACH = 50, 2e-5  # from so many answers to come on, some are waited for; seconds for each that is still to come
_LONGEST = 0.1  # seconds in all


class StreamGrid(OwnGrid):
    """The clients of a `StreamServer`. A node is there while its client is connected."""

    def __init__(self, server: StreamServer) -> None:
        super().__init__(Waiting(server.settings.clients or sys.maxsize, "--clients", math.inf))
        self.server = server
        self.grace = server.settings.grace  # seconds that a client may be cut off, and misses nothing
        self._tickets: dict[int, tuple[Message, Most]] = {}  # what was sent and is not answered
        self._limits: dict[int, Most] = {}  # by node

    def wait_for(self, clients: int, seconds: float) -> None:
        """Until `clients` are connected. Raises RunHalted where they are not in `seconds`."""
        until = time.monotonic() + seconds
        while len(here := self.server.present()) < clients:
            names = ", ".join(map(str, here)) or "none"
            if (left := until - time.monotonic()) <= 0:
                raise RunHalted(f"waited {seconds:g} s for {clients} clients; have {names}")
            self.server.journal.say(f"waiting for {clients} clients, up to {left:.0f} s more: have {names}")
            self.server.wait_for_change(min(left, 5.0))

    def _present(self) -> list[int]:
        return [node_of(client) for client in self.server.present()]

    def wait(self, timeout: float) -> None:
        answers = self.server.receive(timeout)
        if (
            answers and timeout and len(self._tickets) >= _MANY
        ):  # read one by one, they would hold up those on their way
            time.sleep(min(_LONGEST, timeout, _EACH * len(self._tickets)))
            answers += self.server.receive(0)
        for answer in answers:
            if (sent := self._tickets.pop(answer.ticket, None)) is None:
                continue
            about, (_, most) = sent[0].metadata, sent[1]
            id, node = about.message_id, about.dst_node_id
            if answer.body is None:
                self._answered(id, unavailable(node, id, answer.reason))
                continue
            try:
                letter = unseal(answer.body, most)
            except ValueError as error:
                self._answered(id, unavailable(node, id, f"sent {error}"))
                continue
            self._answered(id, reply(node, id, about.message_type, about.group_id, letter.content, letter.error))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.wait(0)
        return super().pull_messages(message_ids)

    def _send(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        limits = self._limits.get(node, _ANY)
        self._tickets[self.server.send(client_of(node), seal(message), limits[0])] = message, limits

    def allow(self, limits: dict[int, Most]) -> None:
        """How large the nodes' answers may be, to all that is sent to them from now on."""
        self._limits |= limits

    def give_up(self, ids: set[str]) -> None:
        tickets = {ticket for ticket, (message, _) in self._tickets.items() if message.metadata.message_id in ids}
        for ticket in tickets:
            about = self._tickets.pop(ticket)[0].metadata
            self.failures[client_of(about.dst_node_id)] = "no answer in time"
        self.server.give_up(tickets)
        for id in ids:
            self._replies.pop(id, None)


def live(client: StreamClient, load: Callable[[UserConfig], ClientApp], node_config: UserConfig) -> None:
    """Be client `client.id` of a run, until it is over. `load` is given the run config of a server that let us in."""

    def prepare(welcomed: Welcomed) -> Callable[[bytearray], Sequence[Buffer]]:
        app, node = load(welcomed.config), node_of(client.id)
        private.enter_run()
        context = Context(
            run_id=1,
            node_id=node,
            node_config={**node_config, "partition-id": client.id, "num-partitions": welcomed.clients},
            state=RecordDict(),
            run_config=welcomed.config,
        )

        def answer(body: bytearray) -> Sequence[Buffer]:
            try:
                letter = unseal(body)
            except ValueError as error:
                raise UserError(f"the server sent {error}") from error
            if letter.content is None:
                raise UserError("the server sent an error, where it should ask for something")
            said = ask(app, arrived(node, "", letter.type, letter.group, letter.content), context)
            if said.has_error() and said.error.code == LEFT:
                raise Last(seal(said), DiskError(said.error.reason))
            return seal(said)

        return answer

    client.run(prepare)
