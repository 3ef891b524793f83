"""Why a server cannot be reached. gRPC says UNAVAILABLE to whatever is wrong; a plain TLS handshake says more."""

import ipaddress
import socket
import ssl
import tempfile
from pathlib import Path

from fedshare.errors import UserError, first_line
from fedshare.identity.identity import Identity

DEADLINE = 5.0  # seconds to connect
_FOREIGN = (19, 20)  # OpenSSL: X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN, X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY


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
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reach(address: str, identity: Identity | None, name: str | None = None) -> None:
    """Connect as a client would, and hang up. Raises NotYet, or UserError where waiting would not help.

    `name`: the host that the certificate there must name; None: that of the address.
    """
    host, port = split(address)
    try:
        with socket.create_connection((host, port), timeout=DEADLINE) as plain:
            if identity:
                _handshake(plain, name or host, address, identity)
            elif _speaks_tls(plain):
                raise UserError(f"{address}: the server asks for certificates: --keys DIR")
    except UnicodeError:
        raise UserError(f"{address}: {host!r} cannot be a host's name") from None
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
        _write(identity, Path(folder))
        context.load_cert_chain(Path(folder) / "client.crt", Path(folder) / "client.key")
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            if secure.recv(1):  # TLS 1.3: whether the server accepts our certificate shows after the handshake
                return
    except ssl.SSLCertVerificationError as error:
        foreign = error.verify_code in _FOREIGN
        reason = "another authority than that of our ca.crt signed it" if foreign else error.verify_message
        raise UserError(f"{address}: the server's certificate is not accepted: {reason}") from None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            raise UserError(f"{address}: what listens there speaks no TLS: a server without certificates?") from None
    except ConnectionResetError:
        pass
    # gRPC's server hangs up on a certificate without a word. If it is that, the reason can be seen from here.
    if flaw := _flaw(identity):
        raise UserError(f"{address}: the server does not accept this client's certificate: {flaw}")
    raise NotYet(f"{address}: the server hung up during the TLS handshake (do the clocks differ, or is it full?)")


def _speaks_tls(plain: socket.socket) -> bool:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        with anyone.wrap_socket(plain):
            return True
    except (ssl.SSLError, ConnectionResetError):
        return False


def _flaw(identity: Identity) -> str | None:
    """Why nobody of our authority accepts this client's certificate."""
    with tempfile.TemporaryDirectory() as folder:
        _write(identity, Path(folder))
        try:
            Identity.load(Path(folder))
        except UserError as error:
            return str(error).replace(f"{folder}/", "").replace(f"{folder}: ", "")
    return None


def _write(identity: Identity, folder: Path) -> None:
    for name, pem in (("ca.crt", identity.ca), ("client.crt", identity.certificate), ("client.key", identity.key)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(pem)
