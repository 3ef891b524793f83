"""Where a peer listens: its neighbours' streams, its doors for others, and who is kept out."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedshare._proto.mesh_pb2 import MeshFrame, MeshHello
from fedshare._proto.stream_pb2 import Refusal
from fedshare.errors import UserError
from fedshare.machine.tally import Tally
from fedshare.transport.mesh.settings import HELLO_LIMIT, LINK, MEET, SERVICE, STATUS, Settings
from fedshare.transport.stream import callers, descriptors, grpc_log, tls
from fedshare.transport.stream.callers import Callers, Peer, place_of
from fedshare.transport.stream.frames import FrameError, parse
from fedshare.transport.stream.handshakes import Handshakes
from fedshare.transport.stream.service import CLOSE_DEADLINE, HELLO_DEADLINE, Door, Health

Serve = Callable[[MeshHello, grpc.aio.ServicerContext], Awaitable[None]]
Answer = Callable[[bytes], bytes]


class Guard(Protocol):
    """Who is let in."""

    def objection(self, hello: MeshHello, certified: int | None, pem: bytes | None) -> str | None: ...

    def refused(self, peer: int, reason: str) -> None: ...


class Listener:
    """Listens at one address. `serve` holds a stream of a neighbour; `meet` and `status` answer single requests."""

    def __init__(
        self,
        settings: Settings,
        identity: tls.Renewed | None,
        tally: Tally,
        guard: Guard,
        serve: Serve,
        meet: Answer,
        status: Answer,
    ) -> None:
        self._settings, self._identity, self._tally, self._guard = settings, identity, tally, guard
        self._serve, self._meet, self._status = serve, meet, status
        self._health = Health(self._speaks)
        self._handshakes = Handshakes(lambda: callers.connected(self._port), self._unheard)
        self._port = 0
        self._server: grpc.aio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def listen(self, address: str) -> int:
        """Return the port. Raises UserError."""
        ours = self._settings
        room = descriptors.room(ours.peers, ours.reserve)
        server = grpc.aio.server(options=tls.server_options(ours.heartbeat, room))
        methods = {
            LINK: grpc.stream_stream_rpc_method_handler(self._link),
            MEET: grpc.unary_unary_rpc_method_handler(self._answering(self._meet)),
            STATUS: grpc.unary_unary_rpc_method_handler(self._answering(self._status)),
        }
        server.add_generic_rpc_handlers((Door(methods),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._port = tls.listen(server, address, self._identity, self._handshakes.begins)
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        self._handshakes.informed = grpc_log.listen(self._handshakes.failed)
        each, in_all = ours.callers, min(8 * ours.callers, room - ours.peers)
        self._callers = Callers(self._port, ours.peers, min(each, in_all), in_all, room, self._tally)
        self._sweeping = asyncio.ensure_future(self._sweep())
        return self._port

    async def close(self) -> None:
        if self._sweeping:
            self._sweeping.cancel()
        if self._server:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(CLOSE_DEADLINE)

    async def _link(self, _: object, context: grpc.aio.ServicerContext) -> None:
        self._speaks(context)
        place, who = place_of(context.peer()), "the caller"
        try:
            hello = await _greeting(context)
            who = f"peer {hello.peer}"
            pem, certified = tls.shown(context), tls.certified(context)
            if reason := self._guard.objection(hello, certified, pem):
                raise _Refused(hello.peer if certified is None else certified, reason)
            with self._callers.greeted(context.peer()):
                await self._serve(hello, context)
        except FrameError as error:
            self._tally.say(place, f"{place} sent {error}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{context.peer()} sent {error}")
        except UserError as error:
            if isinstance(error, _Refused):
                self._guard.refused(error.peer, str(error))
            self._tally.say(place, f"{who} at {place} was refused: {error}")
            refusal = MeshFrame(refusal=Refusal(reason=f"{who} was refused: {error}"))
            await context.write(refusal.SerializeToString())

    def _answering(self, answer: Answer) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        async def answered(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self._speaks(context)
            try:
                tls.certified(context)
                context.set_trailing_metadata((("time", f"{time.time():.3f}"),))
                return answer(request)
            except (FrameError, UserError) as error:
                place = place_of(context.peer())
                self._tally.say(place, f"{place} was refused: {error}")
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                raise

        return answered

    def _speaks(self, context: grpc.aio.ServicerContext) -> None:
        if self._identity:
            self._handshakes.speaks(callers.peer_of(context.peer()))

    def _unheard(self, peer: Peer | None, reason: str) -> None:
        """A connection has ended before any call."""
        place = callers.one_place(peer[0]) if peer else "others"
        self._tally.say(place, f"{place}: {reason}")

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._callers.sweep()
            self._handshakes.sweep()
            self._tally.flush()
            await asyncio.sleep(max(callers.SWEEP, callers.SHARE * (loop.time() - began)))


class _Refused(UserError):
    def __init__(self, peer: int, reason: str) -> None:
        super().__init__(reason)
        self.peer = peer


async def _greeting(context: grpc.aio.ServicerContext) -> MeshHello:
    """The first frame of a call. Raises FrameError where it does not come, or is something else."""
    try:
        frame = await asyncio.wait_for(context.read(), HELLO_DEADLINE)
    except TimeoutError:
        raise FrameError(f"no greeting in {HELLO_DEADLINE:g} s") from None
    return greeting_in(frame)


def greeting_in(frame: object) -> MeshHello:
    """The greeting in a frame. Raises FrameError, or UserError where the frame is a refusal."""
    if not isinstance(frame, bytes):
        raise FrameError("no greeting")
    if len(frame) > HELLO_LIMIT:
        raise FrameError(f"a greeting of {len(frame)} bytes; at most {HELLO_LIMIT} are taken")
    parsed = parse(MeshFrame, frame)
    if parsed.WhichOneof("kind") == "refusal":
        raise UserError(parsed.refusal.reason)
    if parsed.WhichOneof("kind") != "hello":
        raise FrameError("something else before its greeting")
    return parsed.hello
