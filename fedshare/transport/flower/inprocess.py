"""All clients in this process: any Flower app, without Ray, and a client that does nothing costs next to nothing."""

import logging
from collections.abc import Callable

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedshare.errors import DiskError, UserError, first_line
from fedshare.transport.flower.grid import OwnGrid, node_of, unavailable
from fedshare.transport.flower.private import LEFT, RAISED, copied
from fedshare.transport.flower.waiting import PATIENCE, Waiting


class InProcessGrid(OwnGrid):
    """`nodes` clients, asked one after the other in the order of their messages.

    What arrives is a copy, both ways, as over a network. A client's `Context`, and with it its state, lives as long as
    the grid. An app may look for more nodes than there are for `patience` seconds.
    """

    complete = True  # nobody else will come

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        run_config: UserConfig,
        node_config: UserConfig | None = None,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(Waiting(nodes, "--nodes", patience))
        self._app = app
        self._contexts = {
            node_of(i): Context(
                run_id=self.run.run_id,
                node_id=node_of(i),
                node_config={**(node_config or {}), "partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(nodes)
        }

    def _present(self) -> list[int]:
        return list(self._contexts)

    def wait(self, timeout: float) -> None:
        pass  # every message is answered when it is sent

    def _send(self, message: Message) -> None:
        about = message.metadata
        context = self._contexts.get(about.dst_node_id)
        if context is None:
            answer = unavailable(about.dst_node_id, about.message_id, f"there is no node {about.dst_node_id}")
        else:
            answer = copied(ask(self._app, copied(message), context))
        self._answered(about.message_id, answer)


def ask(app: Callable[[Message, Context], Message], message: Message, context: Context) -> Message:
    """What `app` answers. One that raises answers with an error, as on Flower's own nodes.

    Where its disk fails it, that is the last answer: it says how it can go on.
    """
    try:
        answer = app(message, context)
        if not isinstance(answer, Message):
            raise UserError(f"answered with a {type(answer).__name__}, not with a Message")
        return answer
    except Exception as error:
        name = f"client {context.node_config.get('partition-id', context.node_id)}"
        reason = str(error) if isinstance(error, UserError) else f"raised {type(error).__name__}: {first_line(error)}"
        if isinstance(error, DiskError):
            return Message(Error(LEFT, reason), reply_to=message)
        logging.getLogger("flwr").error("%s: %s", name, reason, exc_info=not isinstance(error, UserError))
        return Message(Error(RAISED, reason), reply_to=message)
