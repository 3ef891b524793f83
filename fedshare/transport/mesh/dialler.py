"""The end of a link that dials: it connects, again and again, until it is told to stop."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from fedshare._proto.mesh_pb2 import MeshFrame, MeshHello
from fedshare.errors import UserError, brief
from fedshare.identity import certificates
from fedshare.identity.identity import Identity
from fedshare.transport.mesh.door import greeting_in
from fedshare.transport.mesh.settings import LINK
from fedshare.transport.stream import tls
from fedshare.transport.stream.diagnose import NotYet, reach
from fedshare.transport.stream.frames import FrameError
from fedshare.transport.stream.service import HELLO_DEADLINE

CONNECT_DEADLINE = 5.0  # seconds for one attempt
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts


class Caller(Protocol):
    """For whom a neighbour is dialled."""

    def address(self, peer: int) -> str | None: ...

    async def pause(self, peer: int, seconds: float) -> None:
        """Wait before a further attempt, but no longer than until something new is known of the peer."""
        ...

    def greet(self, peer: int) -> MeshFrame: ...

    async def hold(self, peer: int, greeted: MeshHello, answer: MeshHello, stream: Any) -> None:
        """Converse until the connection ends."""
        ...

    def unreached(self, peer: int, reason: str) -> None: ...

    def refused(self, peer: int, reason: str) -> None: ...


def channel(address: str, peer: int | None, identity: Identity | None, heartbeat: float) -> grpc.aio.Channel:
    """A channel to `peer`, whose certificate must name it; None: to whoever is there, without TLS."""
    options = tls.options(heartbeat)
    if identity is None:
        return grpc.aio.insecure_channel(address, options)
    assert peer is not None
    named = [*options, ("grpc.ssl_target_name_override", certificates.peer_host(peer))]
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    return grpc.aio.secure_channel(address, credentials, named)


async def dial(peer: int, caller: Caller, identity: tls.Renewed | None, heartbeat: float) -> None:
    """Hold a connection to a neighbour, and make it again when it ends."""
    pause = SHORTEST_PAUSE
    while True:
        held = False

        async def hold(greeted: MeshHello, answer: MeshHello, stream: Any) -> None:
            nonlocal held
            held = True
            await caller.hold(peer, greeted, answer, stream)

        try:
            if (address := caller.address(peer)) is None:
                caller.unreached(peer, "its address is not known")
            else:
                await _converse(address, peer, caller, identity.now() if identity else None, heartbeat, hold)
        except grpc.aio.AioRpcError as error:
            if not held:
                caller.unreached(peer, brief(error.details() or error.code().name))
        except (NotYet, FrameError) as error:
            caller.unreached(peer, str(error))
        except UserError as error:
            caller.refused(peer, str(error))
        pause = SHORTEST_PAUSE if held else min(2 * pause, LONGEST_PAUSE)
        await caller.pause(peer, pause * random.uniform(0.75, 1.25))


async def _converse(
    address: str,
    peer: int,
    caller: Caller,
    identity: Identity | None,
    heartbeat: float,
    hold: Callable[[MeshHello, MeshHello, Any], Awaitable[None]],
) -> None:
    async with channel(address, peer, identity, heartbeat) as made:
        if not await _is_ready(made):
            name = certificates.peer_host(peer) if identity else None
            await asyncio.to_thread(reach, address, identity, name)
            raise NotYet(f"{address}: no gRPC connection yet")
        call: Any = made.stream_stream(LINK)()
        try:
            greeting = caller.greet(peer)
            await call.write(greeting.SerializeToString())
            try:
                answer = greeting_in(await asyncio.wait_for(call.read(), HELLO_DEADLINE))
            except TimeoutError:
                raise FrameError(f"{address}: no answer to the greeting in {HELLO_DEADLINE:g} s") from None
            await hold(greeting.hello, answer, call)
            if call.done() and await call.code() is not grpc.StatusCode.OK:
                raise NotYet(brief(await call.details() or "the connection has ended"))
        finally:
            call.cancel()


async def _is_ready(made: grpc.aio.Channel) -> bool:
    """Wait for the connection, but no longer than it takes to fail."""
    try:
        async with asyncio.timeout(CONNECT_DEADLINE):
            state = made.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
                await made.wait_for_state_change(state)
                state = made.get_state()
    except TimeoutError:
        return False
    return True
