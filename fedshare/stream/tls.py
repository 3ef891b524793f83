"""gRPC's connections from certificates, and who a caller is by its own."""

from collections.abc import Callable

import grpc

from fedshare import keys
from fedshare.errors import UserError
from fedshare.keys import Identity, client_id_of
from fedshare.stream.frames import FRAME_LIMIT

HANDSHAKE_DEADLINE = 5.0  # seconds for a caller to say anything
IDLE_DEADLINE = 15.0  # seconds that a connection may be open without a call; a client's call lasts as long as it does


def server_credentials(identity: Identity, begins: Callable[[], None]) -> grpc.ServerCredentials:
    """Mutual TLS: a caller without a certificate of our authority does not get in.

    `begins` is called before each handshake, in a thread of gRPC's, when the connection is there.
    """
    configured = grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], identity.ca)

    def same() -> None:
        begins()

    return grpc.dynamic_ssl_server_credentials(configured, same, require_client_authentication=True)


def channel(address: str, identity: Identity | None, heartbeat: float) -> grpc.Channel:
    """To a server, in the clear where there is no identity."""
    if identity is None:
        return grpc.insecure_channel(address, options(heartbeat))
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    return grpc.secure_channel(address, credentials, options(heartbeat))


def certified(context: grpc.aio.ServicerContext) -> int | None:
    """The client that a caller's certificate names; None without TLS. Raises UserError where it names none."""
    found = context.auth_context()
    if found.get("transport_security_type", [b""])[0] != b"ssl":
        return None
    certificates = found.get("x509_pem_cert")
    if not certificates:
        raise UserError("the caller has no certificate")
    return client_id_of(certificates[0])


def described(context: grpc.aio.ServicerContext) -> dict[str, str]:
    """What identifies a caller's certificate; nothing where it has shown none."""
    certificates = context.auth_context().get("x509_pem_cert")
    return keys.described(certificates[0]) if certificates else {}


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
