"""Single requests to a peer: where the peers are, and how its links are doing."""

import asyncio
import socket
import ssl
import tempfile
from pathlib import Path

import grpc

from fedshare._proto.mesh_pb2 import Meeting, MeshStatus, StatusRequest
from fedshare.errors import UserError, brief, first_line
from fedshare.identity import certificates
from fedshare.identity.identity import Identity
from fedshare.transport.mesh.dialler import channel
from fedshare.transport.mesh.settings import MEET, STATUS
from fedshare.transport.stream.diagnose import NotYet, reach, split
from fedshare.transport.stream.frames import parse

DEADLINE = 5.0  # seconds for one request


async def meet(address: str, peer: int | None, identity: Identity | None, heartbeat: float, said: Meeting) -> Meeting:
    """Tell the peer at `address` where peers are, and return what it knows. Raises UserError.

    `peer`: its number; None: not known.
    """
    return parse(Meeting, await _ask(address, peer, identity, heartbeat, MEET, said.SerializeToString()))


async def status(address: str, identity: Identity | None) -> MeshStatus:
    """Return how the links of the peer at `address` are doing. Raises UserError."""
    return parse(MeshStatus, await _ask(address, None, identity, DEADLINE, STATUS, StatusRequest().SerializeToString()))


async def _ask(
    address: str, peer: int | None, identity: Identity | None, heartbeat: float, method: str, request: bytes
) -> bytes:
    if identity and peer is None:
        peer = await asyncio.to_thread(who_is, address, identity)
    async with channel(address, peer, identity, heartbeat) as made:
        try:
            reply: bytes = await made.unary_unary(method)(request, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                name = None if peer is None or identity is None else certificates.peer_host(peer)
                await asyncio.to_thread(reach, address, identity, name)
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise UserError(f"{address}: what listens there is no peer") from None
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise UserError(f"{address}: {brief(error.details() or '')}") from None
            raise NotYet(f"{address}: {brief(error.details() or error.code().name)}") from None
    return reply


def who_is(address: str, identity: Identity) -> int:
    """Return the number of the peer at `address`, as its certificate says. Raises UserError, of which NotYet."""
    host, port = split(address)
    context = ssl.create_default_context(cadata=identity.ca.decode())
    context.check_hostname = False  # which peer it is, is what is asked
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:  # ssl loads a client's own certificate from files only
        for name, pem in (("crt", identity.certificate), ("key", identity.key)):
            (Path(folder) / name).touch(mode=0o600)
            (Path(folder) / name).write_bytes(pem)
        context.load_cert_chain(Path(folder) / "crt", Path(folder) / "key")
    try:
        with socket.create_connection((host, port), timeout=DEADLINE) as plain, context.wrap_socket(plain) as secure:
            shown = secure.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        raise UserError(f"{address}: its certificate is not accepted: {error.verify_message}") from None
    except ssl.SSLError:
        raise UserError(f"{address}: what listens there speaks no TLS") from None
    except OSError as error:
        raise NotYet(f"{address}: {error.strerror or first_line(error)}") from None
    peer = certificates.client_id(ssl.DER_cert_to_PEM_cert(shown).encode()) if shown else None
    if peer is None:
        raise UserError(f"{address}: its certificate names no peer")
    return peer
