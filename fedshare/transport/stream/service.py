"""The gRPC service: its names, its deadlines, and its doors for frames and for health checks."""

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health

from fedshare._proto.stream_pb2 import Down, Refusal
from fedshare.transport.stream.frames import FrameError

METHOD, ASK = "/fedshare.v1.Stream/Connect", "/fedshare.v1.Stream/Ask"
SERVICE = "fedshare.v1.Stream"
HELLO_DEADLINE = 10.0  # seconds for a caller to say who it is
CLOSE_DEADLINE = 5.0  # seconds for the last frames to leave


async def first_frame(context: grpc.aio.ServicerContext) -> object:
    """The first frame of a call, or gRPC's end of it. Raises FrameError where it does not come."""
    try:
        return await asyncio.wait_for(context.read(), HELLO_DEADLINE)
    except TimeoutError:
        raise FrameError(f"no greeting in {HELLO_DEADLINE:g} s") from None


def refusal(reason: str) -> Down:
    return Down(refusal=Refusal(reason=reason))


class Door(grpc.GenericRpcHandler):
    """Our methods, with frames as bytes: what cannot be parsed is then ours to name."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(handler_call_details.method)


class Health(health.aio.HealthServicer):
    """Health checks; `heard` is called with the context of each."""

    def __init__(self, heard: Callable[[grpc.aio.ServicerContext], None]) -> None:
        super().__init__()
        self._heard = heard

    async def Check(self, request, context):  # type: ignore[no-untyped-def]
        self._heard(context)
        return await super().Check(request, context)

    async def Watch(self, request, context):  # type: ignore[no-untyped-def]
        self._heard(context)
        await super().Watch(request, context)
