"""The server's end: who is there, messages to them, and what they answer.

gRPC runs in a thread of its own; whoever uses a `StreamServer` never waits for a network.
"""

import asyncio
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedshare._proto.stream_pb2 import Down, Farewell, Hello, Refusal, Up, Welcome
from fedshare.errors import UserError
from fedshare.keys import Identity
from fedshare.stream import tls
from fedshare.stream.frames import FRAME_LIMIT, MESSAGE_LIMIT, PROTOCOL, Assembly, Buffer, FrameError, chunks, parse

METHOD = "/fedshare.v1.Stream/Connect"
SERVICE = "fedshare.v1.Stream"
HELLO_DEADLINE = 10.0  # seconds for a caller to say who it is
CLOSE_DEADLINE = 5.0  # seconds for the last frames to leave


@dataclass(frozen=True)
class Settings:
    """What a server tells its clients, and what it asks of them."""

    version: str  # of the program; a client of another is refused
    config: str = "{}"  # JSON, given to each client as it is
    config_sha256: str = ""  # what a client may insist on, in hex
    clients: int = 0  # how many there are: ids below this are let in; 0: any
    heartbeat: float = 10.0  # seconds between pings
    grace: float = 30.0  # seconds after which a client that is gone counts as absent
    limit: int = MESSAGE_LIMIT  # bytes of a message


@dataclass(frozen=True)
class Answer:
    """What became of the message with this ticket."""

    ticket: int
    client: int
    body: bytearray | None  # None: there is none,
    reason: str = ""  # and this is why


@dataclass(eq=False)
class _Message:
    ticket: int
    buffers: Sequence[Buffer]
    number: int = 0  # as its client counts; 0: not sent yet
    sent: bool = False  # whole, on this connection or one before
    given_up: bool = False


@dataclass(eq=False)
class _Client:
    id: int
    waiting: deque[_Message] = field(default_factory=deque)
    current: _Message | None = None  # the one it works on: it has no more than one
    sent: int = 0  # the number of the last
    connection: "_Connection | None" = None
    gone_since: float | None = None
    absent: bool = False


class _Connection:
    """One stream of one client, for as long as it lasts."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self.context = context
        self.wake = asyncio.Event()
        self.last: Down | None = None  # what to say before hanging up


class StreamServer:
    """Listens at `address` ("host:port"; port 0: any that is free) from `start` to `close`."""

    def __init__(self, address: str, identity: Identity | None, settings: Settings) -> None:
        self.address = address
        self.settings = settings
        self.refused: dict[int, str] = {}  # the clients that were not let in, and why the last time
        self._identity = identity
        self._epoch = secrets.token_bytes(8)
        self._clients: dict[int, _Client] = {}
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._tickets = 0
        self._present: frozenset[int] = frozenset()
        self._changed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stream", daemon=True)

    # For whoever uses the server, in any thread.

    def start(self) -> None:
        """Raises UserError where the address cannot be had."""
        self._thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        self.address = f"{self.address.rpartition(':')[0]}:{port}"

    def present(self) -> list[int]:
        """The clients that are connected, or were a moment ago, sorted."""
        return sorted(self._present)

    def wait_for_change(self, timeout: float) -> None:
        """Until somebody comes, goes or is refused."""
        self._changed.wait(timeout)
        self._changed.clear()

    def send(self, client: int, buffers: Sequence[Buffer]) -> int:
        """Send what `buffers` hold to `client`, after what was sent before; give a ticket for the answer."""
        self._tickets += 1
        self._loop.call_soon_threadsafe(self._enqueue, client, _Message(self._tickets, buffers))
        return self._tickets

    def receive(self, timeout: float) -> list[Answer]:
        """The answers that have come, and at least one unless there is none in `timeout` seconds."""
        answers = []
        try:
            answers.append(self._answers.get(timeout=max(0.0, timeout)))
            while True:
                answers.append(self._answers.get_nowait())
        except queue.Empty:
            return answers

    def give_up(self, tickets: set[int]) -> None:
        """Want no answers any more. What was not sent yet never will be."""
        self._loop.call_soon_threadsafe(self._forget, tickets)

    def close(self, farewell: str | None = None) -> None:
        """Hang up. With `farewell` clients hear that the work is done, and why if not ""; without it they come back."""
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._shut(farewell), self._loop).result(CLOSE_DEADLINE * 3)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_DEADLINE)
            self._loop.close()

    # In the stream's own thread, all of it.

    async def _listen(self) -> int:
        server = grpc.aio.server(options=tls.server_options(FRAME_LIMIT, self.settings.heartbeat))
        method = grpc.stream_stream_rpc_method_handler(self._connect)
        server.add_generic_rpc_handlers((_Door(method),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            if self._identity:
                port = server.add_secure_port(self.address, tls.server_credentials(self._identity))
            else:
                port = server.add_insecure_port(self.address)
        except RuntimeError:
            raise UserError(f"{self.address}: cannot listen there: is the port taken, or not this host's?") from None
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        return port

    async def _shut(self, farewell: str | None) -> None:
        assert self._server is not None
        await self._health.enter_graceful_shutdown()
        for client in self._clients.values():
            if client.connection and farewell is not None:
                _hang_up(client.connection, Down(farewell=Farewell(reason=farewell)))
        await self._server.stop(None if farewell is None else CLOSE_DEADLINE)

    def _note_change(self) -> None:
        self._present = frozenset(client.id for client in self._clients.values() if not client.absent)
        self._changed.set()

    def _enqueue(self, id: int, message: _Message) -> None:
        client = self._clients.get(id)
        if client is None or client.absent:
            self._answers.put(Answer(message.ticket, id, None, "not connected"))
            return
        client.waiting.append(message)
        self._next(client)

    def _next(self, client: _Client) -> None:
        """Let the client have its next message, where it is not at work on one."""
        if client.current is None and client.waiting:
            client.sent += 1
            client.current = client.waiting.popleft()
            client.current.number = client.sent
        if client.connection:
            client.connection.wake.set()

    def _forget(self, tickets: set[int]) -> None:
        for client in self._clients.values():
            client.waiting = deque(message for message in client.waiting if message.ticket not in tickets)
            if client.current and client.current.ticket in tickets:
                client.current.given_up = True
                if not client.current.sent:
                    client.current = None
                    self._next(client)

    async def _connect(self, _: object, context: grpc.aio.ServicerContext) -> None:
        try:
            hello = await self._hello(context)
            client = self._clients.setdefault(hello.client, _Client(hello.client))
        except FrameError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{context.peer()} sent {error}")
        except UserError as error:
            await context.write(Down(refusal=Refusal(reason=str(error))).SerializeToString())
            return
        if older := client.connection:
            _hang_up(older, Down(refusal=Refusal(reason=f"another process has connected as client {client.id}")))
        connection = client.connection = _Connection(context)
        client.gone_since, client.absent = None, False
        answered = self._resume(client, hello)
        welcome = Welcome(epoch=self._epoch, answered=answered, config=self.settings.config)
        welcome.clients = self.settings.clients
        await context.write(Down(welcome=welcome).SerializeToString())
        self.refused.pop(client.id, None)
        self._note_change()
        reader = asyncio.ensure_future(self._read(client, connection))
        writer = asyncio.ensure_future(self._write(client, connection))
        left = False
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            left = reader.done() and reader.result()
        except FrameError as error:
            writer.cancel()
            left, self.refused[client.id] = True, f"it sent {error}"
            await context.write(Down(refusal=Refusal(reason=f"client {client.id} sent {error}")).SerializeToString())
        finally:
            reader.cancel()
            writer.cancel()
            self._gone(client, connection, left)

    async def _hello(self, context: grpc.aio.ServicerContext) -> Hello:
        """Who calls. Raises FrameError on what is no greeting, UserError on one that is not let in."""
        try:
            frame = await asyncio.wait_for(context.read(), HELLO_DEADLINE)
        except TimeoutError:
            raise FrameError(f"no greeting in {HELLO_DEADLINE:g} s") from None
        if frame is grpc.aio.EOF:
            raise FrameError("no greeting")
        up = parse(Up, frame)
        if up.WhichOneof("kind") != "hello":
            raise FrameError("something else before its greeting")
        hello, ours = up.hello, self.settings
        reason = None
        if (certified := tls.certified(context)) is not None and certified != hello.client:
            reason = f"its certificate is client {certified}'s, but it says that it is client {hello.client}"
        elif hello.protocol != PROTOCOL or hello.version != ours.version:
            reason = (
                f"it runs fedshare {hello.version} (stream {hello.protocol}), "
                f"the server fedshare {ours.version} (stream {PROTOCOL})"
            )
        elif hello.config and ours.config_sha256 and hello.config != ours.config_sha256:
            reason = f"its config is {hello.config[:12]}, the server's {ours.config_sha256[:12]}"
        elif ours.clients and hello.client >= ours.clients:
            reason = f"there are {ours.clients} clients, 0 to {ours.clients - 1}"
        if reason:
            who = hello.client if certified is None else certified
            self.refused[who] = reason
            self._changed.set()
            raise UserError(f"client {who} was refused: {reason}")
        return hello

    def _resume(self, client: _Client, hello: Hello) -> int:
        """Go on where the last connection broke off; give the last message that was answered."""
        current = client.current
        if current is None:
            return client.sent
        holds = hello.epoch == self._epoch and hello.received >= current.number
        if not holds:
            current.sent = False
            if current.given_up:
                client.current = None
                self._next(client)
        return current.number - 1

    async def _write(self, client: _Client, connection: _Connection) -> None:
        """Send the client what it is to have, until there is a last thing to say."""
        while connection.last is None:
            message = client.current
            if message is None or message.sent:
                connection.wake.clear()
                await connection.wake.wait()
                continue
            for chunk in chunks(message.number, message.buffers):
                await connection.context.write(Down(chunk=chunk).SerializeToString())
                if client.current is not message or connection.last:  # given up, or no longer ours to send
                    break
            else:
                message.sent = True
        await connection.context.write(connection.last.SerializeToString())

    async def _read(self, client: _Client, connection: _Connection) -> bool:
        """Take the client's answers until it leaves, or the connection ends: True where it has left."""
        assembly = Assembly(self.settings.limit)
        while (frame := await connection.context.read()) is not grpc.aio.EOF:
            up = parse(Up, frame)
            kind = up.WhichOneof("kind")
            if kind == "leave":
                return True
            if kind != "chunk":
                raise FrameError("a second greeting")
            if whole := assembly.add(up.chunk):
                self._answered(client, *whole)
        return False

    def _answered(self, client: _Client, number: int, body: bytearray) -> None:
        message = client.current
        if message is None or message.number != number:
            return  # a repetition: the answer had come before the connection broke off
        client.current = None
        if not message.given_up:
            self._answers.put(Answer(message.ticket, client.id, body))
        self._next(client)

    def _gone(self, client: _Client, connection: _Connection, left: bool) -> None:
        """A connection has ended: for good if the client has `left`, perhaps not if it broke off."""
        if client.connection is connection:
            client.connection, client.gone_since = None, time.monotonic()
            self._loop.call_later(0 if left else self.settings.grace, self._expire, client, client.gone_since)

    def _expire(self, client: _Client, since: float) -> None:
        if client.gone_since != since:
            return  # it is back
        client.absent = True
        reason = f"gone since {time.monotonic() - since:.0f} s ago"
        for message in [client.current, *client.waiting]:
            if message and not message.given_up:
                self._answers.put(Answer(message.ticket, client.id, None, reason))
        client.current = None
        client.waiting.clear()
        self._note_change()


def _hang_up(connection: _Connection, last: Down) -> None:
    connection.last = last
    connection.wake.set()


class _Door(grpc.GenericRpcHandler):
    """The one method, with frames as bytes: what cannot be parsed is then ours to name."""

    def __init__(self, method: grpc.RpcMethodHandler) -> None:
        self._method = method

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._method if handler_call_details.method == METHOD else None
