"""gRPC's connections from certificates, and who a caller is by its own."""

import grpc

from fedshare.errors import UserError
from fedshare.keys import Identity, client_id_of
from fedshare.stream.frames import FRAME_LIMIT
from fedshare.stream.handover import METADATA_LIMIT

HANDSHAKE_DEADLINE = 5.0  # seconds for a caller to say anything
IDLE_DEADLINE = 15.0  # seconds that a connection may be open without a call; a client's call lasts as long as it does


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Mutual TLS: a caller without a certificate of our authority does not get in."""
    return grpc.ssl_server_credentials([(identity.key, identity.certificate)], identity.ca, require_client_auth=True)


def channel(address: str, identity: Identity | None, heartbeat: float) -> grpc.Channel:
    """To a server, in the clear where there is no identity."""
    if identity is None:
        return grpc.insecure_channel(address, options(heartbeat))
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    return grpc.secure_channel(address, credentials, options(heartbeat))


def listen(server: grpc.aio.Server, address: str, identity: Identity | None) -> int:
    """Let `server` listen; the port. Raises UserError."""
    try:
        if identity:
            return int(server.add_secure_port(address, server_credentials(identity)))
        return int(server.add_insecure_port(address))
    except RuntimeError:
        raise UserError(f"{address}: cannot listen there: is the port taken, or not this host's?") from None


def certified(context: grpc.aio.ServicerContext) -> int | None:
    """The client that a caller's certificate names; None without TLS. Raises UserError where it names none."""
    found = context.auth_context()
    if found.get("transport_security_type", [b""])[0] != b"ssl":
        return None
    certificates = found.get("x509_pem_cert")
    if not certificates:
        raise UserError("the caller has no certificate")
    return client_id_of(certificates[0])


def options(heartbeat: float) -> list[tuple[str, int]]:
    """For both ends. `heartbeat`: seconds between pings; one unanswered for as long ends the connection.

    Pings are HTTP/2's: gRPC's core sends and answers them however busy Python is, and a stopped process does not.
    """
    every = int(heartbeat * 1000)
    return [
        ("grpc.max_metadata_size", 8192),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", FRAME_LIMIT),
        ("grpc.max_send_message_length", FRAME_LIMIT),
        ("grpc.keepalive_time_ms", every),
        ("grpc.keepalive_timeout_ms", every),
        ("grpc.http2.ping_timeout_ms", every),  # gRPC's core goes by this one: 60 s where it is not said
        ("grpc.http2.bdp_probe", 0),  # or buffers grow until, on a slow link, pings wait behind seconds of data
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.use_local_subchannel_pool", 1),  # or the clients of one process would share a connection
    ]


def gated_options(heartbeat: float, connections: int) -> list[tuple[str, int]]:
    """Of a server behind a gate: all its clients come by one connection, which stays when none is there."""
    drop = {"grpc.max_metadata_size", "grpc.max_connection_idle_ms", "grpc.max_concurrent_streams"}
    kept = [(name, value) for name, value in server_options(heartbeat, connections) if name not in drop]
    return [*kept, ("grpc.max_metadata_size", METADATA_LIMIT)]


def server_options(heartbeat: float, connections: int) -> list[tuple[str, int]]:
    """`connections`: how many there may be; gRPC closes what goes beyond them at once."""
    return [
        *options(heartbeat),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_connection_idle_ms", int(IDLE_DEADLINE * 1000)),
        ("grpc.so_reuseport", 0),  # or two servers on one port would share the clients, silently
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_DEADLINE * 1000)),
        ("grpc.max_concurrent_streams", 8),
        ("grpc.http2.min_ping_interval_without_data_ms", max(100, int(heartbeat * 500))),
        ("grpc.http2.max_ping_strikes", 0),
    ]
