"""Where a peer listens: its neighbours' streams, its doors for others, and who is kept out."""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedshare._proto.mesh_pb2 import MeshFrame, MeshHello
from fedshare._proto.stream_pb2 import Refusal
from fedshare.errors import UserError
from fedshare.machine.tally import Tally
from fedshare.transport.mesh.settings import LINK, MEET, SERVICE, STATUS, Settings
from fedshare.transport.stream import descriptors, tls
from fedshare.transport.stream.callers import place_of
from fedshare.transport.stream.frames import HELLO_LIMIT, FrameError, greeting, parse
from fedshare.transport.stream.newcomers import Newcomers
from fedshare.transport.stream.service import CLOSE_DEADLINE, Door, Health, first_frame

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
        self._newcomers = Newcomers(identity is not None, tally)
        self._health = Health(self._newcomers.speaks)
        self._server: grpc.aio.Server | None = None

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
        port = tls.listen(server, address, self._identity, self._newcomers.begins)
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        self._newcomers.watch(port, ours.peers, ours.callers, room)
        self._newcomers.explain()
        return port

    async def close(self) -> None:
        self._newcomers.close()
        if self._server:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(CLOSE_DEADLINE)

    async def _link(self, _: object, context: grpc.aio.ServicerContext) -> None:
        self._newcomers.speaks(context)
        place, who = place_of(context.peer()), "the caller"
        try:
            hello = greeting_in(await first_frame(context))
            who = f"peer {hello.peer}"
            pem, certified = tls.shown(context), tls.certified(context)
            if reason := self._guard.objection(hello, certified, pem):
                raise _Refused(hello.peer if certified is None else certified, reason)
            with self._newcomers.greeted(context):
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
            self._newcomers.speaks(context)
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


class _Refused(UserError):
    def __init__(self, peer: int, reason: str) -> None:
        super().__init__(reason)
        self.peer = peer


def greeting_in(frame: object) -> MeshHello:
    """The greeting in a frame. Raises FrameError, or UserError where the frame is a refusal."""
    if isinstance(frame, bytes) and len(frame) <= HELLO_LIMIT:
        parsed = parse(MeshFrame, frame)
        if parsed.WhichOneof("kind") == "refusal":
            raise UserError(parsed.refusal.reason)
    return greeting(MeshFrame, frame).hello
