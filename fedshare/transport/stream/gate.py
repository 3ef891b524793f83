"""One port for several runs: each caller is passed on to the server of the run that it asks for.

A gate knows certificates and who may connect, and nothing of runs: it keeps no state, so that it may be killed and
started again. Frames pass unchanged, one at a time each way: a slow reader is sent frames slowly, and costs no memory.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedshare._proto.stream_pb2 import Down, Refusal
from fedshare.errors import UserError
from fedshare.identity.identity import Identity
from fedshare.machine.tally import EVERY, Tally
from fedshare.transport.stream import callers, descriptors, handover, sockets, tls
from fedshare.transport.stream.callers import Callers, place_of
from fedshare.transport.stream.frames import FrameError, parse
from fedshare.transport.stream.service import ASK, CLOSE_DEADLINE, HELLO_DEADLINE, METHOD, SERVICE

LOOK = 1.0  # seconds between two looks at which runs are here
SHOWN = 8  # runs in a line
_PASSED_ON = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED)


@dataclass(frozen=True)
class Settings:
    """How a gate treats its callers: as a server does that listens itself."""

    heartbeat: float = 10.0  # seconds between pings
    callers: int = 64  # connections of one address that have not greeted, beside one for each client still to come
    reserve: int = 128  # file descriptors kept for files and the servers of runs
    quiet: float = EVERY  # seconds in which the log says the same of a caller once


class _Elsewhere(Exception):
    """The caller has no run here: for good, or `yet`. The message says why."""

    def __init__(self, reason: str, yet: bool) -> None:
        super().__init__(reason)
        self.yet = yet


class Gate:
    """Listens at `address` ("host:port"; port 0: any that is free) for the runs in `folder`, in one event loop."""

    def __init__(
        self,
        address: str,
        identity: Identity | None,
        folder: Path,
        settings: Settings,
        say: Callable[[str], None] = print,
    ) -> None:
        self.address = address
        self._identity, self._folder, self._settings, self._say = identity, folder, settings, say
        self._tally = Tally(say, settings.quiet)
        self._health = health.aio.HealthServicer()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._here: list[str] = []

    async def start(self) -> None:
        """Raises UserError where the address cannot be had."""
        ours = self._settings
        room = descriptors.room(0, ours.reserve)
        server = grpc.aio.server(options=tls.server_options(ours.heartbeat, room))
        methods = {
            METHOD: grpc.stream_stream_rpc_method_handler(self._connect),
            ASK: grpc.unary_unary_rpc_method_handler(self._ask),
        }
        named = {path.rpartition("/")[2]: handler for path, handler in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, named),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        identity = tls.Renewed(self._identity, self._say) if self._identity else None
        port = tls.listen(server, self.address, identity)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        each, in_all = ours.callers, min(8 * ours.callers, room)
        self._callers = Callers(port, 0, min(each, in_all), in_all, room, self._tally)
        self._watch = [asyncio.ensure_future(self._sweep()), asyncio.ensure_future(self._look())]

    @property
    def security(self) -> str:
        return "mutual TLS" if self._identity else "no TLS"

    async def close(self) -> None:
        """Hang up: clients wait for a gate."""
        for task in self._watch:
            task.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(None)
        for channel in self._channels.values():
            with suppress(TimeoutError):
                await asyncio.wait_for(channel.close(), CLOSE_DEADLINE)

    async def _sweep(self) -> None:
        while True:
            self._callers.sweep()
            self._tally.flush()
            await asyncio.sleep(callers.SWEEP)

    async def _look(self) -> None:
        """Report the runs that come and go, and allow for connections of their clients."""
        while True:
            before, self._here = self._here, sockets.here(self._folder)
            for run in sorted({*before} ^ {*self._here}):
                line = f"run {run} is {'here' if run in self._here else 'gone'}"
                self._tally.say(f"run {run}", line, changes=True)
            self._callers.clients = sum(sockets.clients(self._folder, run) for run in self._here)
            await asyncio.sleep(LOOK)

    def _run_of(self, context: grpc.aio.ServicerContext) -> str:
        """The run that a caller asks for, or the only one. Raises _Elsewhere."""
        if run := handover.asked(context):
            try:
                sockets.run_name(run)
            except UserError as error:
                raise _Elsewhere(str(error), yet=False) from None
            if not sockets.path_of(self._folder, run).exists():
                raise self._away(run)
            return run
        runs = sockets.here(self._folder)
        if not runs:
            raise _Elsewhere("no run here yet", yet=True)
        if len(runs) > 1:
            raise _Elsewhere(f"several runs are here: {_listed(runs)}; say which with --run", yet=False)
        return runs[0]

    def _away(self, run: str) -> _Elsewhere:
        others = [name for name in sockets.here(self._folder) if name != run]
        return _Elsewhere(f"no run {run!r} here yet; runs here: {_listed(others) or 'none'}", yet=True)

    def _channel(self, run: str) -> grpc.aio.Channel:
        """One connection to the server of a run, for all its clients."""
        if run not in self._channels:
            backoff = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]
            options = [*tls.options(self._settings.heartbeat), *backoff, ("grpc.max_reconnect_backoff_ms", 1000)]
            address = f"unix:{sockets.path_of(self._folder, run)}"
            self._channels[run] = grpc.aio.insecure_channel(address, options)
        return self._channels[run]

    async def _connect(self, _: object, context: grpc.aio.ServicerContext) -> None:
        try:
            run = self._run_of(context)
            await self._relay(run, context)
        except _Elsewhere as error:
            if error.yet:
                await self._send_away(error, context)
            self._note(error, context)
            await context.write(_refusal(error))

    async def _relay(self, run: str, context: grpc.aio.ServicerContext) -> None:
        """Pass frames on, both ways, until the server of the run ends the call. Raises _Elsewhere where it is away."""
        metadata = grpc.aio.Metadata(*handover.told(context), (handover.RUN, run))
        call: Any = self._channel(run).stream_stream(METHOD)(metadata=metadata)
        upwards = asyncio.ensure_future(_pass_up(context, call))
        try:
            with ExitStack() as stack:
                let_in = False
                while (frame := await call.read()) is not grpc.aio.EOF:
                    if not let_in and _is_welcome(frame):
                        let_in = True
                        stack.enter_context(self._callers.greeted(context.peer()))
                        await context.send_initial_metadata(((handover.RUN, run),))
                    await context.write(frame)
        except grpc.aio.AioRpcError as error:
            await self._pass_on(run, error, context)
        finally:
            upwards.cancel()
            call.cancel()
            await asyncio.gather(upwards, return_exceptions=True)

    async def _ask(self, frame: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Whether a caller would be let in, as the server of the run says."""
        context.set_trailing_metadata((("time", f"{time.time():.3f}"),))
        try:
            run = self._run_of(context)
            metadata = grpc.aio.Metadata(*handover.told(context), (handover.RUN, run))
            call: Any = self._channel(run).unary_unary(ASK)(frame, metadata=metadata, timeout=HELLO_DEADLINE)
            try:
                reply: bytes = await call
            except grpc.aio.AioRpcError as error:
                await self._pass_on(run, error, context)
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            return reply
        except _Elsewhere as error:
            if error.yet:
                await self._send_away(error, context)
            return _refusal(error)

    async def _pass_on(self, run: str, error: grpc.aio.AioRpcError, context: grpc.aio.ServicerContext) -> None:
        """End a caller's call as the server of the run has ended ours. Raises _Elsewhere where that is away."""
        if error.code() not in _PASSED_ON:
            raise self._away(run) from None
        await context.abort(error.code(), error.details() or "")

    async def _send_away(self, error: _Elsewhere, context: grpc.aio.ServicerContext) -> None:
        self._note(error, context)
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error), ((handover.WAIT, "1"),))

    def _note(self, error: _Elsewhere, context: grpc.aio.ServicerContext) -> None:
        place = place_of(context.peer())
        self._tally.say(place, f"{place} {'is to wait' if error.yet else 'was refused'}: {error}")


async def _pass_up(context: grpc.aio.ServicerContext, call: Any) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call has ended; who reads it says how
        while (frame := await context.read()) is not grpc.aio.EOF:
            await call.write(frame)
        await call.done_writing()


def _is_welcome(frame: bytes) -> bool:
    with suppress(FrameError):
        return parse(Down, frame).WhichOneof("kind") == "welcome"
    return False


def _refusal(error: _Elsewhere) -> bytes:
    return bytes(Down(refusal=Refusal(reason=str(error))).SerializeToString())


def _listed(runs: list[str]) -> str:
    more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
    return ", ".join(runs[:SHOWN]) + more
