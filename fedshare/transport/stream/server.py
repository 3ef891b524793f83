"""The server's end: who is there, messages to them, and what they answer.

gRPC runs in a thread of its own; whoever uses a `StreamServer` never waits for a network.
"""

import asyncio
import contextlib
import itertools
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedshare._proto.stream_pb2 import Down, Farewell, GivenUp, Hello, Refusal, Up, Welcome
from fedshare.errors import NAME, UserError, brief
from fedshare.identity import certificates
from fedshare.identity.admission import Admission
from fedshare.identity.keys import Identity
from fedshare.machine.tally import EVERY, Tally
from fedshare.transport.stream import callers, descriptors, grpc_log, handover, tls
from fedshare.transport.stream.callers import Callers, Peer, address_of, place_of
from fedshare.transport.stream.frames import (
    MESSAGE_LIMIT,
    PROTOCOL,
    Assembly,
    Buffer,
    FrameError,
    chunks,
    filled,
    parse,
)
from fedshare.transport.stream.handshakes import Handshakes
from fedshare.transport.stream.mailbox import Mailbox, Message

METHOD, ASK = "/fedshare.v1.Stream/Connect", "/fedshare.v1.Stream/Ask"
SERVICE = "fedshare.v1.Stream"
HELLO_DEADLINE = 10.0  # seconds for a caller to say who it is
HELLO_LIMIT = 4096  # bytes of its saying so
REFUSED = 1000  # callers of which it is known why they were refused; without TLS a caller may give any number
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
    limit: int = MESSAGE_LIMIT  # bytes of an answer, where nobody says what is expected of it
    awaited: int = 0  # how many are to come, where not all of `clients` are or these are not known
    callers: int = 64  # connections of one address that have not greeted, beside one for each client still to come
    reserve: int = 128  # file descriptors kept for files; the others are for connections
    quiet: float = EVERY  # seconds in which the log says the same of a caller once
    reminder: float = 86400.0  # seconds between two warnings of a certificate that ends soon
    name: str = ""  # of the run: who asks for another is refused


class Record(Protocol):
    def __call__(self, event: str, about: str, /, **what: str | int) -> None:
        """`about`: a client or an address."""


def _unrecorded(event: str, about: str, /, **what: str | int) -> None: ...


@dataclass(frozen=True)
class Answer:
    """What became of the message with this ticket."""

    ticket: int
    client: int
    body: bytearray | None  # None: there is none,
    reason: str = ""  # and this is why


@dataclass(eq=False)
class _Client(Mailbox):
    id: int = 0
    connection: "_Connection | None" = None
    absent: bool = False
    gone: bool = False  # it was here, and is not connected
    caller: dict[str, str] = field(default_factory=dict)  # where its last connection came from, for the record
    expiry: asyncio.TimerHandle | None = None  # when it will be, unless it comes back

    def wake(self) -> None:
        if self.connection:
            self.connection.wake.set()


class _Connection:
    """One stream of one client, for as long as it lasts."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self.context = context
        self.shown = tls.shown(context)  # its certificate
        self.wake = asyncio.Event()
        self.last: Down | None = None  # what to say before hanging up
        self.cut = asyncio.Event()  # no more is said or heard


class StreamServer:
    """Listens at `address` ("host:port"; port 0: any that is free) from `start` to `close`.

    At "unix:PATH" a gate connects, and tells whose calls it passes on.
    """

    def __init__(
        self, address: str, identity: Identity | None, settings: Settings, say: Callable[[str], None] = print
    ) -> None:
        self.address = address
        self.settings = settings
        self._gated = address.startswith("unix:")
        self.refused: dict[int, str] = {}  # the clients that were not let in, and why the last time
        self.say = say  # a line of its log
        self.refusal: Callable[[str], None] = lambda reason: None  # hears why somebody was not let in
        self.admission = Admission()  # the operator's lists; to be set before `start`
        self.record: Record = _unrecorded  # hears who joined, is gone, or was refused
        self.banned: Mapping[int, str] = {}  # the clients that the operator lets in no more, and why
        self._identity = tls.Renewed(identity, say) if identity else None
        self._epoch = secrets.token_bytes(8)
        self._clients: dict[int, _Client] = {}
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._tickets = itertools.count(1)
        self._sent: deque[tuple[int, Message]] = deque()  # what the stream's thread has not seen yet
        self._told = False  # that there is some
        self._present: frozenset[int] = frozenset()
        self._suspended: Collection[int] = ()
        self._changed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._server: grpc.aio.Server | None = None
        self._closing = False
        self._health = _Health(self._speaks)
        self._handshakes = Handshakes(self._connected, self._unheard)
        self._port = 0
        self._tally = Tally(say, settings.quiet)
        self._thread = threading.Thread(target=self._loop.run_forever, name="stream", daemon=True)

    # For whoever uses the server, in any thread.

    def start(self) -> None:
        """Raises UserError where the address cannot be had, or file descriptors are too few for the clients."""
        ours = self.settings
        try:
            room = descriptors.room(0 if self._gated else max(ours.clients, ours.awaited), ours.reserve)
        except UserError:
            self._loop.close()
            raise
        self._thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._listen(room), self._loop).result(30)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        if not self._gated:
            self.address = f"{self.address.rpartition(':')[0]}:{port}"

    def present(self) -> list[int]:
        """The clients that are connected, or were a moment ago, sorted; without those that are suspended."""
        return sorted(self._present.difference(self._suspended))

    def suspend(self, clients: Collection[int]) -> None:
        """Count these, and no others, as not there; they stay connected."""
        self._suspended = frozenset(clients)
        self._changed.set()

    def expel(self, client: int, reason: str) -> None:
        """End the connection of a client at once; it hears why, and what it was to answer fails with that."""
        self._loop.call_soon_threadsafe(self._expel, client, reason)

    def connected(self) -> list[int]:
        """The clients that are connected now, sorted."""
        return sorted(client.id for client in list(self._clients.values()) if client.connection is not None)

    def connections(self) -> int:
        """How many clients are connected."""
        return len(self.connected())

    def wait_for_change(self, timeout: float) -> None:
        """Until somebody comes, goes or is refused."""
        self._changed.wait(timeout)
        self._changed.clear()

    def send(self, client: int, buffers: Sequence[Buffer], limit: int | None = None) -> int:
        """Send what `buffers` hold to `client`, after what was sent before; give a ticket for the answer.

        `limit`: the bytes that the answer may have; without it those of the settings.
        """
        message = Message(next(self._tickets), filled(buffers), limit=limit)
        self._sent.append((client, message))
        if not self._told:  # once for many: each time costs a system call, and a change of threads
            self._told = True
            self._loop.call_soon_threadsafe(self._take)
        return message.ticket

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
            with contextlib.suppress(TimeoutError):  # then clients find out by themselves
                asyncio.run_coroutine_threadsafe(self._shut(farewell), self._loop).result(CLOSE_DEADLINE * 3)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_DEADLINE)
            self._loop.close()

    def explain(self) -> None:
        """Say why handshakes fail, where this process reads gRPC's log: see `grpc_log.captured`."""
        self._handshakes.informed = grpc_log.listen(self._handshakes.failed)

    # In the stream's own thread, all of it.

    async def _listen(self, room: int) -> int:
        options = tls.gated_options if self._gated else tls.server_options
        server = grpc.aio.server(options=options(self.settings.heartbeat, room))
        methods = self._connect, self._ask
        first, second = map(handover.relayed, methods) if self._gated else methods
        connect, ask = grpc.stream_stream_rpc_method_handler(first), grpc.unary_unary_rpc_method_handler(second)
        server.add_generic_rpc_handlers((_Door({METHOD: connect, ASK: ask}),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._port = port = tls.listen(server, self.address, self._identity, self._handshakes.begins)
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        clients = max(self.settings.clients, self.settings.awaited)
        each, in_all = self.settings.callers, min(8 * self.settings.callers, room - clients)
        self._callers = Callers(port, clients, min(each, in_all), in_all, room, self._tally)
        self._sweep()
        self._remind()
        return port

    def _sweep(self) -> None:
        if not self._closing:
            began = self._loop.time()
            self._callers.sweep()
            self._handshakes.sweep()
            self._tally.flush()
            if self.admission.refresh():
                self._review()
            self._loop.call_later(max(callers.SWEEP, callers.SHARE * (self._loop.time() - began)), self._sweep)

    def _review(self) -> None:
        """Expel who is connected and would not be let in any more."""
        for client in list(self._clients.values()):
            seen = client.connection
            if seen and (reason := self.admission.objection(client.id, seen.shown)):
                self._expel(client.id, reason)

    def _expel(self, id: int, reason: str) -> None:
        client = self._clients.get(id)
        if client is None or client.absent:
            return
        if client.expiry:
            client.expiry.cancel()
        if connection := client.connection:
            self._ended(client, connection, reason)  # so that what it still sends counts no more
            _hang_up(connection, _refusal(f"client {id} was refused: {reason}"))
            self._loop.call_later(CLOSE_DEADLINE, connection.cut.set)  # though it hears nothing
        else:
            self._note("gone", client, reason=reason)
            self._lose(client, reason)
        self.refused[id] = reason

    def _remind(self) -> None:
        """Say of whose certificate the end is near, and do so again."""
        if self._identity and not self._closing:
            self._loop.call_later(self.settings.reminder, self._remind)
            for line in self._identity.now().endings():
                self.say(line)
            for client in self._clients.values():
                if client.connection:
                    self._warn(client.id, client.connection.shown)

    def _warn(self, client: int, pem: bytes | None) -> None:
        if pem and (said := certificates.ending_of(pem)):
            line = f"client {client}'s certificate {said}: renew it with `fedshare keys`"
            self._tally.say(f"the certificate of client {client}", line)

    async def _shut(self, farewell: str | None) -> None:
        assert self._server is not None
        self._closing = True
        await self._health.enter_graceful_shutdown()
        for client in self._clients.values():
            if client.connection and farewell is not None:
                _hang_up(client.connection, Down(farewell=Farewell(reason=farewell)))
        await self._server.stop(None if farewell is None else CLOSE_DEADLINE)
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:  # gRPC's own, and what waits for a connection
            await asyncio.wait(rest, timeout=CLOSE_DEADLINE)
        await asyncio.sleep(0.05)  # gRPC's poller may still hold events for this loop

    def _note_change(self) -> None:
        self._present = frozenset(client.id for client in self._clients.values() if not client.absent)
        self._changed.set()

    def _take(self) -> None:
        self._told = False  # first: whoever sends from now on tells again
        while self._sent:
            self._enqueue(*self._sent.popleft())

    def _enqueue(self, id: int, message: Message) -> None:
        client = self._clients.get(id)
        if client is None or client.absent:
            self._answers.put(Answer(message.ticket, id, None, "not connected"))
            return
        client.put(message)
        client.wake()

    def _forget(self, tickets: set[int]) -> None:
        for client in self._clients.values():
            client.forget(tickets)
            client.wake()

    def _connected(self) -> set[Peer]:
        return callers.connected(self._port)

    def _speaks(self, context: grpc.aio.ServicerContext) -> None:
        if self._identity:
            self._handshakes.speaks(callers.peer_of(context.peer()))

    def _unheard(self, peer: Peer | None, reason: str) -> None:
        """A connection has ended before any call."""
        place = callers.one_place(peer[0]) if peer else "others"
        self._tally.say(place, f"{place}: {reason}")
        self.record("refused", place, address=peer[0] if peer else "unknown", reason=reason)
        self.refusal(reason)

    async def _connect(self, _: object, context: grpc.aio.ServicerContext) -> None:
        self._speaks(context)
        try:
            hello = await self._hello(context)
            with self._callers.greeted(context.peer()):
                await self._admit(hello, context)
        except FrameError as error:
            self.refusal(f"{context.peer()} sent {error}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{context.peer()} sent {error}")
        except UserError as error:
            self.refusal(str(error))
            await context.write(_refusal(str(error)).SerializeToString())

    async def _admit(self, hello: Hello, context: grpc.aio.ServicerContext) -> None:
        """Let a client in, for as long as its connection lasts. Raises FrameError."""
        client = self._clients.setdefault(hello.client, _Client(id=hello.client))
        if client.connection:
            _hang_up(client.connection, _refusal(f"another process has connected as client {client.id}"))
        if client.expiry:
            client.expiry.cancel()
        connection = client.connection = _Connection(context)
        client.caller = _caller(context)
        self._warn(client.id, connection.shown)
        if client.gone:
            self._tally.say(f"client {client.id}", f"client {client.id} is back", changes=True)
        client.absent, client.gone, gone = False, False, None
        try:
            left = await self._converse(client, connection, hello)
            gone = "it left" if left else None
        except FrameError as error:
            gone = self.refused[client.id] = f"it sent {error}"
            raise
        finally:
            self._ended(client, connection, gone)

    async def _converse(self, client: _Client, connection: _Connection, hello: Hello) -> bool:
        """All that is said on a connection, until it ends: True where the client has left."""
        answered = client.resume(hello.received if hello.epoch == self._epoch else 0)
        welcome = Welcome(epoch=self._epoch, answered=answered, config=self.settings.config)
        welcome.clients = self.settings.clients
        await connection.context.write(Down(welcome=welcome).SerializeToString())
        self.refused.pop(client.id, None)
        self._note_change()
        self._note("joined", client)
        reader = asyncio.ensure_future(self._read(client, connection))
        writer = asyncio.ensure_future(self._write(client, connection))
        cut = asyncio.ensure_future(connection.cut.wait())
        try:
            await asyncio.wait({reader, writer, cut}, return_when=asyncio.FIRST_COMPLETED)
            return reader.done() and reader.result()
        finally:
            for task in (reader, writer, cut):
                task.cancel()

    async def _hello(self, context: grpc.aio.ServicerContext) -> Hello:
        """Who calls. Raises FrameError on what is no greeting, UserError on one that is not let in."""
        place = place_of(context.peer())
        try:
            hello = await self._greeting(context)
            certified = tls.certified(context)
        except (FrameError, UserError) as error:
            why = f"{'it sent ' * isinstance(error, FrameError)}{error}"
            known = _certified(context)
            about = place if known is None else f"client {known}"
            self._tally.say(about, f"{about} was refused: {why}")
            self.record("refused", about, **_caller(context), **_numbered(known), reason=why)
            raise
        reason = handover.elsewhere(context, self.settings.name)
        if reason := reason or self._objection(hello, certified, tls.shown(context)):
            who = hello.client if certified is None else certified
            line = f"client {who} was refused: {reason}"
            about = place if certified is None else f"client {who}"
            self._tally.say(about, line)
            self.record("refused", about, client=who, **_caller(context), reason=reason)
            if who in self.refused or len(self.refused) < REFUSED:
                self.refused[who] = reason
            self._changed.set()
            raise UserError(line)
        return hello

    async def _greeting(self, context: grpc.aio.ServicerContext) -> Hello:
        try:
            frame = await asyncio.wait_for(context.read(), HELLO_DEADLINE)
        except TimeoutError:
            raise FrameError(f"no greeting in {HELLO_DEADLINE:g} s") from None
        if frame is grpc.aio.EOF:
            raise FrameError("no greeting")
        if len(frame) > HELLO_LIMIT:
            raise FrameError(f"a greeting of {len(frame)} bytes; at most {HELLO_LIMIT} are taken")
        up = parse(Up, frame)
        if up.WhichOneof("kind") != "hello":
            raise FrameError("something else before its greeting")
        return up.hello

    def _objection(self, hello: Hello, certified: int | None, shown: bytes | None) -> str | None:
        """Why a greeting is not one that is let in."""
        ours = self.settings
        if certified is not None and certified != hello.client:
            return f"its certificate is client {certified}'s, but it says that it is client {hello.client}"
        if self.admission.refresh():
            self._review()
        if reason := self.admission.objection(hello.client, shown):
            return reason
        if hello.protocol != PROTOCOL or hello.version != ours.version:
            theirs = f"fedshare {brief(hello.version, NAME)} (stream {hello.protocol})"
            return f"it runs {theirs}, the server fedshare {ours.version} (stream {PROTOCOL})"
        if hello.config and ours.config_sha256 and hello.config != ours.config_sha256:
            return f"its config is {brief(hello.config[:12])}, the server's {ours.config_sha256[:12]}"
        if (why := self.banned.get(hello.client)) is not None:
            return f"the operator has banned it{why and f': {why}'}"
        if ours.clients and hello.client >= ours.clients:
            return f"there are {ours.clients} clients, 0 to {ours.clients - 1}"
        return None

    async def _ask(self, frame: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Say whether a caller would be let in, and let nobody in."""
        self._speaks(context)
        context.set_trailing_metadata((("time", f"{time.time():.3f}"),))
        try:
            hello = parse(Hello, frame)
            reason = handover.elsewhere(context, self.settings.name)
            reason = reason or self._objection(hello, tls.certified(context), tls.shown(context))
        except (FrameError, UserError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{context.peer()} sent {error}")
        if reason:
            return bytes(_refusal(f"client {hello.client} was refused: {reason}").SerializeToString())
        return bytes(Down(welcome=Welcome(clients=self.settings.clients)).SerializeToString())

    async def _write(self, client: _Client, connection: _Connection) -> None:
        """Send the client what it is to have, until there is a last thing to say."""
        while connection.last is None:
            message = client.current
            if message and message.sent and message.given_up and not message.told:
                message.told = True
                await connection.context.write(Down(given_up=GivenUp(message=message.number)).SerializeToString())
            elif message is None or message.sent:
                connection.wake.clear()
                await connection.wake.wait()
            else:
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
                raise FrameError("a second greeting" if kind else "a frame that says nothing")
            if up.chunk.message > client.counted:
                raise FrameError(f"an answer to message {up.chunk.message}, which was never sent")
            if client.current is None or client.current.number != up.chunk.message:
                continue  # repeated after a cut, or too late
            if (whole := assembly.add(up.chunk, client.current.limit)) is None:
                continue
            if message := client.answered():
                self._answers.put(Answer(message.ticket, client.id, whole[1]))
            if client.current:
                client.wake()
        return False

    def _ended(self, client: _Client, connection: _Connection, gone: str | None) -> None:
        """A connection has: for good where there is a reason, perhaps not where it broke off."""
        if client.connection is not connection:
            return
        client.connection, client.gone = None, True
        grace = self.settings.grace
        if not self._closing:
            hope = "" if gone else f"; absent if it is not back in {grace:g} s"
            line = f"client {client.id} is gone: {gone or 'the connection broke off'}{hope}"
            self._tally.say(f"client {client.id}", line, changes=True)
            self._note("gone", client, reason=gone or "the connection broke off")
        if gone:
            self._lose(client, gone)
        else:
            client.expiry = self._loop.call_later(grace, self._lose, client, f"gone since {grace:g} s ago")

    def _note(self, event: str, client: _Client, **what: str) -> None:
        self.record(event, f"client {client.id}", client=client.id, **client.caller, **what)

    def _lose(self, client: _Client, reason: str) -> None:
        client.absent = True
        for message in client.lost():
            self._answers.put(Answer(message.ticket, client.id, None, reason))
        self._note_change()


def _refusal(reason: str) -> Down:
    return Down(refusal=Refusal(reason=reason))


def _hang_up(connection: _Connection, last: Down) -> None:
    connection.last = last
    connection.wake.set()


class _Health(health.aio.HealthServicer):
    """Health checks, each of which `heard` is told of."""

    def __init__(self, heard: Callable[[grpc.aio.ServicerContext], None]) -> None:
        super().__init__()
        self._heard = heard

    async def Check(self, request, context):  # type: ignore[no-untyped-def]
        self._heard(context)
        return await super().Check(request, context)

    async def Watch(self, request, context):  # type: ignore[no-untyped-def]
        self._heard(context)
        await super().Watch(request, context)


def _caller(context: grpc.aio.ServicerContext) -> dict[str, str]:
    """Where a call comes from, and its certificate, for the record."""
    return {"address": address_of(context.peer())} | tls.described(context)


def _certified(context: grpc.aio.ServicerContext) -> int | None:
    """The client that a caller's certificate names, where it names one."""
    try:
        return tls.certified(context)
    except UserError:
        return None


def _numbered(client: int | None) -> dict[str, int]:
    return {} if client is None else {"client": client}


class _Door(grpc.GenericRpcHandler):
    """Our methods, with frames as bytes: what cannot be parsed is then ours to name."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(handler_call_details.method)
