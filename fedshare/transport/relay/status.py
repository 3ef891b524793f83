"""What a relay says of its log and its peers."""

import json
from typing import Any

import grpc

from fedshare._proto.relay_pb2 import StatusAsked, StatusSaid
from fedshare.errors import brief
from fedshare.identity.identity import Identity
from fedshare.transport.relay.protocol import STATUS
from fedshare.transport.stream import tls
from fedshare.transport.stream.diagnose import NotYet, reach


def status(address: str, identity: Identity | None, deadline: float) -> dict[str, Any]:
    """Return run, rounds, for whom the open round waits, and the peers. Raises NotYet, or UserError."""
    reach(address, identity)
    with tls.channel(address, identity, deadline) as channel:
        call = channel.unary_unary(STATUS, StatusAsked.SerializeToString, StatusSaid.FromString)
        try:
            said: dict[str, Any] = json.loads(call(StatusAsked(), timeout=deadline).json)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise NotYet(f"{address}: what listens there is no relay") from None
            raise NotYet(f"{address}: {brief(error.details() or error.code().name)}") from None
        except ValueError:
            raise NotYet(f"{address}: what listens there is no relay") from None
    return said
