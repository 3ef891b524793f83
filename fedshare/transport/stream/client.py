"""A client's end of the stream: it stays connected, and answers each message once.

The connection has a thread of its own, so that it is kept, and made again, while the client trains.
"""

import threading
from collections.abc import Callable, Sequence

from fedshare._proto.stream_pb2 import Hello
from fedshare.errors import UserError
from fedshare.identity.identity import Identity
from fedshare.transport.stream import tls
from fedshare.transport.stream.frames import MESSAGE_LIMIT, PROTOCOL, Buffer, filled
from fedshare.transport.stream.line import CONNECT_DEADLINE, NOTHING, Line
from fedshare.transport.stream.turns import Turns, Welcomed

Work = Callable[[bytearray], Sequence[Buffer]]  # gives the answer to a message


class Last(Exception):
    """Raised by the work on a message: with this answer the client leaves, and `why`."""

    def __init__(self, answer: Sequence[Buffer], why: UserError) -> None:
        super().__init__(str(why))
        self.answer, self.why = answer, why


class StreamClient:
    """Client `id` of the server at `address`.

    `patience`: seconds to go on trying when the server cannot be reached. `say` is told, in a line, what is waited for.
    `run`: which run to take part in, where a gate has several or the server's has a name; without it the only one.
    """

    def __init__(
        self,
        address: str,
        id: int,
        identity: Identity | None,
        version: str,
        config_sha256: str = "",
        patience: float = 600.0,
        heartbeat: float = 10.0,
        limit: int = MESSAGE_LIMIT,
        say: Callable[[str], None] = print,
        run: str = "",
    ) -> None:
        self.address, self.id = address, id
        self._closing = threading.Event()
        self._turns = Turns()
        hello = Hello(protocol=PROTOCOL, client=id, version=version, config=config_sha256)
        renewed = tls.Renewed(identity, say) if identity else None
        reach = address, hello, renewed, self._turns, self._closing
        self._line = Line(*reach, patience, heartbeat, limit, say, run)

    def run(self, prepare: Callable[[Welcomed], Work]) -> None:
        """Answer messages until the server says that the work is done.

        `prepare` is called with what the server said, once for each life of a server, and gives the function that
        answers. Raises UserError when this client is refused or the server stays away, RunHalted when the work ended
        badly, and why the client left where it has given its `Last` answer.
        """
        thread = threading.Thread(target=self._line.hold, name="stream", daemon=True)
        thread.start()
        work: Work | None = None
        try:
            while (item := self._turns.inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Welcomed):
                    work = prepare(item)
                    continue
                assert work is not None  # a welcome comes before any message
                if item.epoch != self._turns.epoch:
                    continue  # nobody waits for it any more
                why, buffers = None, NOTHING
                try:
                    if item.number > self._turns.given_up:
                        buffers = work(item.body)
                except Last as last:
                    buffers, why = last.answer, last.why
                self._turns.reply(item, filled(buffers))
                if why:
                    raise why
        finally:
            self.close()
            thread.join(CONNECT_DEADLINE)

    def close(self) -> None:
        """Leave in order, and let `run` return: the server knows at once."""
        self._closing.set()
        self._turns.leave()
