"""What a doctor asks of gRPC: whether a server serves, and how quick the protobuf here is."""

import grpc
from google.protobuf.internal import api_implementation
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedshare.errors import first_line
from fedshare.keys import Identity
from fedshare.stream import tls
from fedshare.stream.diagnose import NotYet
from fedshare.stream.frames import FRAME_LIMIT
from fedshare.stream.server import SERVICE


def health(address: str, identity: Identity | None, deadline: float) -> str:
    """What the health service at `address` says of ours: SERVING, or else; no client is disturbed.

    Raises NotYet where it says nothing within `deadline` seconds.
    """
    options = tls.options(FRAME_LIMIT, deadline)
    if identity:
        channel = grpc.secure_channel(address, tls.channel_credentials(identity), options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            reply = check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=deadline, wait_for_ready=True)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NotYet(f"{address}: no answer over gRPC in {deadline:g} s") from None
            if code is grpc.StatusCode.NOT_FOUND or code is grpc.StatusCode.UNIMPLEMENTED:
                raise NotYet(f"{address}: what listens there is no fedshare server") from None
            raise NotYet(f"{address}: {first_line(Exception(error.details() or code.name))}") from None
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return name


def protobuf_backend() -> str:
    """Of protobuf: "upb" is the quick one; "python" takes a hundred times longer."""
    backend: str = api_implementation.Type()
    return backend
