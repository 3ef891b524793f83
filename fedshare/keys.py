"""The keys of a deployment over mutual TLS: an authority, and an identity for the server and for each client.

    DIR/ca/        ca.crt, ca.key                  the authority; its key stays with the operator
    DIR/server/    ca.crt, server.crt, server.key  goes to the server
    DIR/client-3/  ca.crt, client.crt, client.key  goes to the host of client 3, and with them
                   supernode, supernode.pub        a key pair for Flower's own authentication of nodes

Who a client is stands in its certificate, as the URI `fedshare:client:3` (RFC 5280, section 4.2.1.6): a server asks the
connection and need not believe a message.
"""

import ipaddress
import os
import re
import shlex
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedshare.errors import UserError
from fedshare.files import write_atomically

MAX_CLIENTS = 10_000
MAX_DAYS = 3650
AUTHORITY_LIFE = timedelta(days=2 * MAX_DAYS)
CLOCK_SKEW = timedelta(minutes=5)
RENEWAL = timedelta(days=30)  # a certificate with less left is made anew

_CLIENT = re.compile("fedshare:client:(0|[1-9][0-9]{0,8})")
_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*(?![0-9]+$){_LABEL}")
_PURPOSES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
_Party = tuple[x509.Name, ec.EllipticCurvePrivateKey]
_USES = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
_USES += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]


@dataclass(frozen=True)
class Identity:
    """What a participant trusts and what it shows, as PEM: the authority, its own certificate and the key to it."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """Read DIR/server or DIR/client-3.

        Raises UserError where a peer would not accept what is there now, or where others can use the key.
        """
        roles = [role for role in _PURPOSES if (folder / f"{role}.crt").exists()]
        if len(roles) != 1:
            raise UserError(f"{folder}: must hold either server.crt or client.crt; `fedshare keys` makes such folders")
        authority, certificate = folder / "ca.crt", folder / f"{roles[0]}.crt"
        for held in (_verified(certificate, authority), _certificate(authority)):
            _require_current(held, folder)
        _require_private(certificate.with_suffix(".key"))
        identity = cls(_read(authority), _read(certificate), _read(certificate.with_suffix(".key")))
        if roles == ["client"] and identity.client_id is None:
            raise UserError(f"{certificate}: must name one client, as fedshare:client:3")
        return identity

    @property
    def client_id(self) -> int | None:
        """None for the server."""
        return _client_id(self.certificate)


def client_id_of(pem: bytes) -> int:
    """The client that the certificate of a peer names. Raises UserError unless it names exactly one."""
    client = _client_id(pem)
    if client is None:
        raise UserError("the peer's certificate must name one client, as fedshare:client:3")
    return client


def described(pem: bytes) -> dict[str, str]:
    """Serial number and SHA-256 of a certificate, in hex as openssl prints them, and when it ends (UTC)."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return {}
    until = certificate.not_valid_after_utc
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    return {"serial": f"{certificate.serial_number:X}", "sha256": fingerprint, "not_after": f"{until:%Y-%m-%d %H:%M}"}


def describe(folder: Path) -> list[tuple[str, datetime]]:
    """Each certificate in DIR, or in the folder of one participant, by name, and when it ends (UTC)."""
    clients = sorted(folder.glob("client-*/client.crt"), key=lambda path: (len(path.parent.name), path))
    paths = [*(folder / role / f"{role}.crt" for role in ("ca", "server")), *clients]
    named = [(path.parent.name, path) for path in paths]
    named += [(name, folder / f"{name}.crt") for name in ("ca", "server", "client")]
    found = [(name, _certificate(path).not_valid_after_utc) for name, path in named if path.exists()]
    if not found:
        raise UserError(f"{folder}: holds no certificates; `fedshare keys` makes them")
    return found


def make(folder: Path, hosts: list[str], clients: int, days: int) -> list[str]:
    """Make what `folder` lacks for a server at `hosts` and for clients 0 to `clients` - 1, valid for `days`.

    No key that is there is replaced. A certificate is, for the same key, if it lacks a host or ends within 30 days.
    Returns a line for each folder in which something was made, or one that says that nothing was.
    Raises UserError, with nothing written, where what is there is damaged or comes from another authority.
    """
    if not 1 <= clients <= MAX_CLIENTS:
        raise UserError(f"--clients {clients}: must be from 1 to {MAX_CLIENTS}")
    if not 1 <= days <= MAX_DAYS:
        raise UserError(f"--days {days}: must be from 1 to {MAX_DAYS}")
    wanted = {folder / "server": [_host(name) for name in (*hosts, "localhost", "127.0.0.1")]}
    for client in range(clients):
        wanted[folder / f"client-{client}"] = [x509.UniformResourceIdentifier(f"fedshare:client:{client}")]
    authority = _Authority.load(folder / "ca")
    held = {place: _held(place, authority) for place in wanted}

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = {}
    if authority is None:
        authority, made[folder / "ca"] = _Authority.make(folder / "ca")
    for place, names in wanted.items():
        made[place] = _complete(place, names, held[place], authority, timedelta(days=days))
    lines = [f"{place}: made {', '.join(what)}" for place, what in made.items() if what]
    return lines or [f"{folder}: nothing to make; the server and {clients} clients have all they need"]


@dataclass(frozen=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, place: Path) -> "_Authority | None":
        """None where there is none yet."""
        missing = [path for path in (place / "ca.key", place / "ca.crt") if not path.exists()]
        if not missing:
            certificate = _verified(place / "ca.crt", place / "ca.crt")
            _require_current(certificate, place)
            return cls(certificate, _key(place / "ca.key"))
        for signed in (*place.glob("ca.crt"), *place.parent.glob("server/*.crt"), *place.parent.glob("client-*/*.crt")):
            raise UserError(f"{missing[0]}: missing, though {signed} is there; bring it back, or take a new folder")
        return None

    @classmethod
    def make(cls, place: Path) -> tuple["_Authority", list[str]]:
        key, made = _key_at(place / "ca.key")
        skid = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
        name = _name(f"fedshare authority {skid[:16]}")  # two authorities are told apart by their names
        until = _now() + AUTHORITY_LIFE
        limits = x509.BasicConstraints(ca=True, path_length=0), _usage("key_cert_sign")
        certificate = _signed((name, key), (name, key), until, *limits)
        write_atomically(place / "ca.crt", _pem(certificate))
        return cls(certificate, key), [*made, f"ca.crt until {until:%Y-%m-%d}"]


def _held(place: Path, authority: _Authority | None) -> x509.Certificate | None:
    """A participant's certificate, unless it or its key is missing. Raises UserError where something does not fit."""
    role = place.name.partition("-")[0]
    certificate, key, supernode = place / f"{role}.crt", place / f"{role}.key", place / "supernode"
    for path in filter(Path.exists, (key, supernode)):
        _key(path)
    if authority and (place / "ca.crt").exists() and _certificate(place / "ca.crt") != authority.certificate:
        raise UserError(f"{place / 'ca.crt'}: must be the same as {place.parent / 'ca' / 'ca.crt'}")
    if not (certificate.exists() and key.exists()):
        return None
    verified = _verified(certificate, place.parent / "ca" / "ca.crt")
    client = _client_id(_pem(verified))
    if place.name != ("server" if client is None else f"client-{client}"):
        raise UserError(f"{certificate}: belongs to {'no client' if client is None else f'client {client}'}")
    return verified


def _complete(
    place: Path, names: list[x509.GeneralName], held: x509.Certificate | None, authority: _Authority, life: timedelta
) -> list[str]:
    """Make what the folder of a participant lacks, and say what that was."""
    role = place.name.partition("-")[0]
    if held is None:  # a certificate whose key is lost: it must not meet the new key, should this be interrupted
        (place / f"{role}.crt").unlink(missing_ok=True)
    key, made = _key_at(place / f"{role}.key")
    if not (place / "ca.crt").exists():
        write_atomically(place / "ca.crt", _pem(authority.certificate))
        made.append("ca.crt")
    before = [*held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value] if held else []
    names = list(dict.fromkeys([*before, *names]))
    if held is None or names != before or held.not_valid_after_utc < _now() + min(RENEWAL, life / 3):
        until = min(_now() + life, authority.certificate.not_valid_after_utc)
        limits = x509.BasicConstraints(ca=False, path_length=None), _usage("digital_signature")
        what = x509.ExtendedKeyUsage([_PURPOSES[role]]), x509.SubjectAlternativeName(names)
        issuer = authority.certificate.subject, authority.key
        certificate = _signed(issuer, (_name(place.name), key), until, *limits, *what)
        write_atomically(place / f"{role}.crt", _pem(certificate))
        hosts = f" for {', '.join(str(name.value) for name in names)}" if role == "server" else ""
        made.append(f"{role}.crt{hosts} until {until:%Y-%m-%d}")
    if role == "client":
        node, new = _key_at(place / "supernode")
        made += new
        public, form = place / "supernode.pub", (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        line = node.public_key().public_bytes(*form) + f" {place.name}\n".encode()
        if not public.exists() or _read(public) != line:
            write_atomically(public, line)
            made.append(public.name)
    return made


def _key_at(path: Path) -> tuple[ec.EllipticCurvePrivateKey, list[str]]:
    """The key at `path`, made if there is none, and what was made."""
    if path.exists():
        return _key(path), []
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.suffix:
        key, form = ec.generate_private_key(ec.SECP256R1()), serialization.PrivateFormat.PKCS8
    else:  # for Flower, which reads OpenSSH's form
        key, form = ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.OpenSSH
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_atomically(path, pem, mode=0o600)
    return key, [path.name]


def _signed(issuer: _Party, subject: _Party, until: datetime, *what: x509.ExtensionType) -> x509.Certificate:
    """A certificate with the key identifiers that strict verifiers ask for."""
    (signer, signing), (name, key) = issuer, (subject[0], subject[1].public_key())
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(signer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(_now() - CLOCK_SKEW).not_valid_after(until)
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    for extension in (*what, own, above):
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical)
    return builder.sign(signing, hashes.SHA256())


def _host(name: str) -> x509.GeneralName:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if not _DNS_NAME.fullmatch(name.lower()):
            allowed = "must be a DNS name or an IP address, without a port"
            raise UserError(f"--server {name!r}: {allowed}") from None
        return x509.DNSName(name.lower())
    if address.is_unspecified or "%" in name:
        raise UserError(f"--server {name}: must be an address by which clients reach the server")
    return x509.IPAddress(address)


def _verified(path: Path, authority: Path) -> x509.Certificate:
    """The certificate at `path`, if the key beside it is its own and `authority` signed it."""
    certificate, issuer = _certificate(path), _certificate(authority)
    if _key(path.with_suffix(".key")).public_key() != certificate.public_key():
        raise UserError(f"{path.with_suffix('.key')}: is not the key of {path.name}")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UserError(f"{path}: was not signed by {authority}") from error
    return certificate


def _require_current(certificate: x509.Certificate, place: Path) -> None:
    begin, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, _now()
    if not begin <= now <= end:
        name = certificate.subject.rfc4514_string()
        hint = "set the clock" if now < begin else "renew it with `fedshare keys`, or set the clock if it is wrong"
        when = f"valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and the clock says {now:%Y-%m-%d %H:%M}"
        raise UserError(f"{place}: the certificate of {name} is {when}; {hint}")


def _require_private(key: Path) -> None:
    """Raise UserError where others than its owner can use a key.

    One of root's may be read by a group of this process, as a service's must be. On a read-only mount the modes are the
    affair of who made the mount: containers' secrets, systemd's credentials.
    """
    found, me = key.stat(), os.geteuid()
    by_group = found.st_uid == 0 != me and found.st_gid in {os.getegid(), *os.getgroups()}
    mode = stat.S_IMODE(found.st_mode)
    if not mode & (0o037 if by_group else 0o077) or os.statvfs(key).f_flag & os.ST_RDONLY:
        return
    shown = shlex.quote(str(key))
    own = f"chown {me} {shown} && " if me not in (0, found.st_uid) and not by_group else ""
    chmod = f"chmod {'g=r,o=' if by_group else 'go='} {shown}"
    raise UserError(f"{key}: others can use this private key (mode {mode:04o}): {own}{chmod}")


def _client_id(pem: bytes) -> int | None:
    """None unless the certificate can be read and names exactly one client."""
    try:
        extensions = x509.load_pem_x509_certificate(pem).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    found = [*filter(None, map(_CLIENT.fullmatch, names.get_values_for_type(x509.UniformResourceIdentifier)))]
    return int(found[0][1]) if len(found) == 1 else None


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: must be a certificate in PEM") from error


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    load = serialization.load_pem_private_key if path.suffix else serialization.load_ssh_private_key
    try:
        key = load(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path}: must be a private key in PEM, on an elliptic curve and without a passphrase")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use == allowed for use in _USES})


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
