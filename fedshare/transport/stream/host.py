"""A server in the thread of its event loop: it listens, lets callers in, and looks after its connections."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedshare._proto.stream_pb2 import Down, Farewell
from fedshare.errors import UserError
from fedshare.transport.stream import callers, handover, tls
from fedshare.transport.stream.callers import Peer
from fedshare.transport.stream.connection import Connection
from fedshare.transport.stream.entrance import Entrance
from fedshare.transport.stream.frames import FrameError
from fedshare.transport.stream.journal import Journal
from fedshare.transport.stream.members import Members
from fedshare.transport.stream.newcomers import Newcomers
from fedshare.transport.stream.service import ASK, CLOSE_DEADLINE, METHOD, SERVICE, Door, Health, refusal
from fedshare.transport.stream.settings import Settings


class Host:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        identity: tls.Renewed | None,
        journal: Journal,
        entrance: Entrance,
        members: Members,
    ) -> None:
        self._loop, self._settings, self._identity = loop, settings, identity
        self._journal, self._entrance, self._members = journal, entrance, members
        self._newcomers = Newcomers(identity is not None, journal.tally, self._unheard)
        self._health = Health(self._newcomers.speaks)
        self._server: grpc.aio.Server | None = None
        self._closing = False

    async def listen(self, address: str, room: int) -> int:
        """Returns the port. `room`: how many connections there may be. Raises UserError."""
        ours, gated = self._settings, address.startswith("unix:")
        options = tls.gated_options if gated else tls.server_options
        server = grpc.aio.server(options=options(ours.heartbeat, room))
        methods = self._connect, self._ask
        first, second = map(handover.relayed, methods) if gated else methods
        connect, ask = grpc.stream_stream_rpc_method_handler(first), grpc.unary_unary_rpc_method_handler(second)
        server.add_generic_rpc_handlers((Door({METHOD: connect, ASK: ask}),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = tls.listen(server, address, self._identity, self._newcomers.begins)
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        self._newcomers.watch(port, max(ours.clients, ours.awaited), ours.callers, room, self._entrance.refresh)
        self._remind()
        return port

    async def close(self, farewell: str | None) -> None:
        """Hang up; with `farewell`, clients hear it first."""
        assert self._server is not None
        self._closing = True
        self._newcomers.close()
        self._members.close(None if farewell is None else Down(farewell=Farewell(reason=farewell)))
        await self._health.enter_graceful_shutdown()
        await self._server.stop(None if farewell is None else CLOSE_DEADLINE)
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:  # gRPC's own, and what waits for a connection
            await asyncio.wait(rest, timeout=CLOSE_DEADLINE)
        await asyncio.sleep(0.05)  # gRPC's poller may still hold events for this loop

    def explain(self) -> None:
        """Say why handshakes fail, where this process reads gRPC's log: see `grpc_log.captured`. In any thread."""
        self._newcomers.explain()

    # Calls.

    async def _connect(self, _: object, context: grpc.aio.ServicerContext) -> None:
        self._newcomers.speaks(context)
        try:
            caller = tls.caller(context)  # before anything is read: of a call that has ended, gRPC may know no address
            hello = await self._entrance.hello(context, caller)
            with self._newcomers.greeted(context):
                await self._members.serve(hello, Connection(context, caller))
        except FrameError as error:
            self._journal.refusal(f"{context.peer()} sent {error}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{context.peer()} sent {error}")
        except UserError as error:
            self._journal.refusal(str(error))
            await context.write(refusal(str(error)).SerializeToString())

    async def _ask(self, frame: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self._newcomers.speaks(context)
        return await self._entrance.answer(frame, context)

    def _unheard(self, peer: Peer | None, reason: str) -> None:
        """A connection has ended before any call."""
        place = callers.one_place(peer[0]) if peer else "others"
        self._journal.record("refused", place, address=peer[0] if peer else "unknown", reason=reason)
        self._journal.refusal(reason)

    def _remind(self) -> None:
        """Say whose certificate ends soon, and do so again."""
        if self._identity and not self._closing:
            self._loop.call_later(self._settings.reminder, self._remind)
            for line in self._identity.now().endings():
                self._journal.say(line)
            for member in self._members.connected():
                self._members.warn(member)
