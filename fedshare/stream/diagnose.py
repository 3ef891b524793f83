"""Why a server cannot be reached. gRPC says UNAVAILABLE to whatever is wrong; a plain TLS handshake says more."""

import os
import socket
import ssl
import tempfile
from pathlib import Path

from fedshare.errors import UserError, first_line
from fedshare.files import write_atomically
from fedshare.keys import Identity

DEADLINE = 5.0  # seconds to connect


class NotYet(UserError):
    """The server cannot be reached now; it may be later."""

    exit_code = 3


def split(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise UserError(f"{address!r}: an address is HOST:PORT, such as server.example.org:9443")
    return host.strip("[]"), int(port)


def is_local(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    return host in ("localhost", "::1") or host.startswith("127.")


def reach(address: str, identity: Identity | None) -> None:
    """Connect as a client would, and hang up. Raises NotYet, or UserError where waiting would not help."""
    host, port = split(address)
    try:
        with socket.create_connection((host, port), timeout=DEADLINE) as plain:
            if identity:
                _handshake(plain, host, address, identity)
    except socket.gaierror as error:
        raise NotYet(f"{address}: the name {host} is not known ({error.strerror})") from None
    except ConnectionRefusedError:
        raise NotYet(f"{address}: nobody listens there") from None
    except TimeoutError:
        raise NotYet(f"{address}: no answer in {DEADLINE:g} s (a firewall?)") from None
    except OSError as error:
        raise NotYet(f"{address}: {error.strerror or first_line(error)}") from None


def _handshake(plain: socket.socket, host: str, address: str, identity: Identity) -> None:
    context = ssl.create_default_context(cadata=identity.ca.decode())
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:  # ssl loads a client's own certificate from files only
        both = Path(folder) / "client.pem"
        os.chmod(folder, 0o700)
        write_atomically(both, identity.key + b"\n" + identity.certificate)
        context.load_cert_chain(both)
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            secure.settimeout(1.0)  # TLS 1.3: a server that turns our certificate down says so after the handshake
            if not secure.recv(1):
                raise NotYet(f"{address}: the server hung up after the TLS handshake")
    except TimeoutError:
        return  # it waits for us to speak
    except ssl.SSLCertVerificationError as error:
        raise UserError(f"{address}: the server's certificate is not accepted: {error.verify_message}") from None
    except ssl.SSLError as error:
        reason = (error.reason or first_line(error)).replace("_", " ").lower()
        if "wrong version" in reason or "record layer" in reason:
            raise UserError(f"{address}: what listens there speaks no TLS: a server without certificates?") from None
        raise UserError(f"{address}: the server does not accept this client's certificate: {reason}") from None
    except ConnectionResetError:
        raise NotYet(f"{address}: the server hung up during the TLS handshake") from None
