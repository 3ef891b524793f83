"""What a doctor asks of gRPC: whether a server serves, and how quick the protobuf here is."""

import time
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.internal import api_implementation
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedshare._proto.stream_pb2 import Down, Hello
from fedshare.errors import brief
from fedshare.identity.identity import Identity
from fedshare.transport.stream import handover, tls
from fedshare.transport.stream.diagnose import NotYet
from fedshare.transport.stream.frames import PROTOCOL
from fedshare.transport.stream.service import ASK, SERVICE


def health(address: str, identity: Identity | None, deadline: float, service: str = SERVICE) -> str:
    """What the health service at `address` says of ours: SERVING, or else; no client is disturbed.

    Raises NotYet where it says nothing within `deadline` seconds.
    """
    with tls.channel(address, identity, deadline) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            reply = check(health_pb2.HealthCheckRequest(service=service), timeout=deadline, wait_for_ready=True)
        except grpc.RpcError as error:
            raise _said_nothing(address, error, deadline) from None
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return name


@dataclass(frozen=True)
class Verdict:
    """Whether a server would let a client in, and what time it has there."""

    refusal: str  # empty: it would be let in
    ahead: float  # seconds by which this host's clock is ahead of the server's, to within `doubt`
    doubt: float


def ask(
    address: str,
    identity: Identity | None,
    client: int,
    version: str,
    config_sha256: str,
    deadline: float,
    run: str = "",
) -> Verdict:
    """Whether the server would let a client in; none that is connected is disturbed. Raises NotYet as `health` does."""
    hello = Hello(protocol=PROTOCOL, client=client, version=version, config=config_sha256)
    with tls.channel(address, identity, deadline) as channel:
        call = channel.unary_unary(ASK, Hello.SerializeToString, Down.FromString)
        before = time.time()
        try:
            down, state = call.with_call(hello, timeout=deadline, wait_for_ready=True, metadata=handover.asking(run))
        except grpc.RpcError as error:
            raise _said_nothing(address, error, deadline) from None
        after = time.time()
    theirs = float(dict(state.trailing_metadata())["time"])
    return Verdict(brief(down.refusal.reason), (before + after) / 2 - theirs, (after - before) / 2)


def _said_nothing(address: str, error: Any, deadline: float) -> NotYet:
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return NotYet(f"{address}: no answer over gRPC in {deadline:g} s")
    if code is grpc.StatusCode.NOT_FOUND or code is grpc.StatusCode.UNIMPLEMENTED:
        return NotYet(f"{address}: what listens there is no fedshare server")
    return NotYet(f"{address}: {brief(error.details() or code.name)}")


def protobuf_backend() -> str:
    """Of protobuf: "upb" is the quick one; "python" takes a hundred times longer."""
    backend: str = api_implementation.Type()
    return backend
