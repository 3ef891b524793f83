"""gRPC connections over mutual TLS, and which client a caller is by its certificate."""

from collections.abc import Callable

import grpc

from fedshare.errors import UserError, first_line
from fedshare.identity import certificates
from fedshare.identity.identity import Identity, client_id_of
from fedshare.transport.stream.callers import address_of
from fedshare.transport.stream.frames import FRAME_LIMIT
from fedshare.transport.stream.handover import METADATA_LIMIT

HANDSHAKE_DEADLINE = 5.0  # seconds for a caller to say anything
RECORD = 4096  # bytes of a TLS record that a server sends: each connection keeps room for one, 16 kB by default
IDLE_DEADLINE = 15.0  # seconds that a connection may be open without a call; a client's call lasts as long as it does


class Renewed:
    """An identity as it is on disk now: a certificate that is renewed there is used without a restart.

    A half-written or damaged one is reported once, and the one before stays in use.
    """

    def __init__(self, identity: Identity, say: Callable[[str], None]) -> None:
        self._identity, self._say = identity, say
        self._complaint = ""

    def now(self) -> Identity:
        if self._identity.folder and self._identity.outdated():
            try:
                self._identity = Identity.load(self._identity.folder)
            except (UserError, OSError) as error:
                if (complaint := first_line(error)) != self._complaint:
                    self._complaint = complaint
                    self._say(f"{complaint}; the certificate that was there before stays in use")
            else:
                self._complaint = ""
                self._say(f"{self._identity.folder}: the certificate of {self._identity.who} was renewed")
        return self._identity


def server_credentials(identity: Renewed, begins: Callable[[], None]) -> grpc.ServerCredentials:
    """Mutual TLS: a caller needs a certificate of our authority.

    `begins` is called before each handshake, in a thread of gRPC's, once the connection is there.
    """
    used = identity.now()

    def configured(one: Identity) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(one.key, one.certificate)], one.ca)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Called before each handshake. None: nothing has changed."""
        nonlocal used
        begins()
        if (found := identity.now()) is used:
            return None
        used = found
        return configured(found)

    return grpc.dynamic_ssl_server_credentials(configured(used), renewed, require_client_authentication=True)


def channel(address: str, identity: Identity | None, heartbeat: float, name: str | None = None) -> grpc.Channel:
    """A channel to a server, without TLS where there is no identity.

    `name`: the host that its certificate must name; None: that of the address.
    """
    if identity is None:
        return grpc.insecure_channel(address, options(heartbeat))
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    named = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.secure_channel(address, credentials, [*options(heartbeat), *named])


def listen(
    server: grpc.aio.Server, address: str, identity: Renewed | None, begins: Callable[[], None] = lambda: None
) -> int:
    """Let `server` listen, and return the port. `begins` is as for `server_credentials`. Raises UserError."""
    try:
        if identity:
            return int(server.add_secure_port(address, server_credentials(identity, begins)))
        return int(server.add_insecure_port(address))
    except RuntimeError:
        raise UserError(f"{address}: cannot listen there: is the port taken, or not this host's?") from None


def shown(context: grpc.aio.ServicerContext) -> bytes | None:
    """The certificate of a caller; None without TLS. Raises UserError where it has none."""
    found = context.auth_context()
    if found.get("transport_security_type", [b""])[0] != b"ssl":
        return None
    pems = found.get("x509_pem_cert")
    if not pems:
        raise UserError("the caller has no certificate")
    pem: bytes = pems[0]
    return pem


def certified(context: grpc.aio.ServicerContext) -> int | None:
    """The client that a caller's certificate names; None without TLS. Raises UserError where it names none."""
    pem = shown(context)
    return None if pem is None else client_id_of(pem)


def named(context: grpc.aio.ServicerContext) -> int | None:
    """The client that a caller's certificate names, if it has one and that names one."""
    try:
        return certified(context)
    except UserError:
        return None


def described(context: grpc.aio.ServicerContext) -> dict[str, str]:
    """What identifies a caller's certificate; empty where it has shown none."""
    pems = context.auth_context().get("x509_pem_cert")
    return certificates.described(pems[0]) if pems else {}


def caller(context: grpc.aio.ServicerContext) -> dict[str, str]:
    """Where a call comes from, and its certificate, as the audit log has it."""
    return {"address": address_of(context.peer())} | described(context)


def options(heartbeat: float) -> list[tuple[str, int]]:
    """Options of both ends. `heartbeat`: seconds between pings; one unanswered for as long ends the connection.

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
        ("grpc.http2.ping_timeout_ms", every),  # the one that gRPC's core uses: 60 s by default
        ("grpc.http2.bdp_probe", 0),  # or buffers grow until, on a slow link, pings wait behind seconds of data
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.use_local_subchannel_pool", 1),  # or the clients of one process would share a connection
    ]


def gated_options(heartbeat: float, connections: int) -> list[tuple[str, int]]:
    """Options of a server behind a gate: all clients come by one connection, which stays when none is there."""
    drop = {"grpc.max_metadata_size", "grpc.max_connection_idle_ms", "grpc.max_concurrent_streams"}
    kept = [(name, value) for name, value in server_options(heartbeat, connections) if name not in drop]
    return [*kept, ("grpc.max_metadata_size", METADATA_LIMIT)]


def server_options(heartbeat: float, connections: int) -> list[tuple[str, int]]:
    """Options of a server. `connections`: how many there may be; gRPC closes others at once."""
    return [
        *options(heartbeat),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_connection_idle_ms", int(IDLE_DEADLINE * 1000)),
        ("grpc.so_reuseport", 0),  # or two servers on one port would share the clients, silently
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_DEADLINE * 1000)),
        ("grpc.max_concurrent_streams", 8),
        ("grpc.tsi.max_frame_size", RECORD),
        ("grpc.http2.min_ping_interval_without_data_ms", max(100, int(heartbeat * 500))),
        ("grpc.http2.max_ping_strikes", 0),
    ]
