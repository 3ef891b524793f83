"""The keys of a deployment over mutual TLS: an authority, and an identity for the server and for each client.

DIR/ca/        ca.crt, ca.key                  the authority; its key stays with the operator
DIR/server/    ca.crt, server.crt, server.key  goes to the server
DIR/client-3/  ca.crt, client.crt, client.key  goes to the host of client 3, and with them
               supernode, supernode.pub        a key pair for Flower's own authentication of nodes
               client-3.csr                    instead of the keys, where these were made on the client's host
"""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedshare.errors import UserError
from fedshare.identity import certificates
from fedshare.identity.certificates import RENEWAL, client_id, ending, load, private_key, read, verified
from fedshare.machine.files import write_atomically

MAX_CLIENTS = 10_000
MAX_DAYS = 3650
AUTHORITY_LIFE = timedelta(days=2 * MAX_DAYS)

_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*(?![0-9]+$){_LABEL}")
_ROLES = "server", "client"
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Identity:
    """What a participant trusts and what it shows, as PEM: the authority, its own certificate and the key to it."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    folder: Path | None = field(default=None, compare=False)  # where it was read,
    stamp: _Stamp = field(default=(), compare=False, repr=False)  # and which files these were

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """Read DIR/server or DIR/client-3.

        Raises UserError where a peer would not accept what is there now, or where others can use the key.
        """
        roles = [role for role in _ROLES if (folder / f"{role}.crt").exists()]
        if len(roles) != 1:
            raise UserError(f"{folder}: must hold either server.crt or client.crt; `fedshare keys` makes such folders")
        authority, certificate = folder / "ca.crt", folder / f"{roles[0]}.crt"
        stamp = _stamp(folder)
        for held in (verified(certificate, authority), load(authority)):
            certificates.require_current(held, folder)
        certificates.require_private(certificate.with_suffix(".key"))
        pems = read(authority), read(certificate), read(certificate.with_suffix(".key"))
        identity = cls(*pems, folder=folder, stamp=stamp)
        if roles == ["client"] and identity.client_id is None:
            raise UserError(f"{certificate}: must name one client, as fedshare:client:3")
        return identity

    @property
    def client_id(self) -> int | None:
        """None for the server."""
        return client_id(self.certificate)

    @property
    def who(self) -> str:
        client = self.client_id
        return "the server" if client is None else f"client {client}"

    def outdated(self) -> bool:
        """Whether its folder holds other files now."""
        return self.folder is not None and _stamp(self.folder) != self.stamp

    def endings(self) -> list[str]:
        """A line for each certificate, its own and the authority's, that ends soon."""
        own, ca = (x509.load_pem_x509_certificate(pem) for pem in (self.certificate, self.ca))
        lines = [f"{self.who}'s certificate {said}: renew it with `fedshare keys`"] if (said := ending(own)) else []
        if said := ending(ca):
            lines.append(f"the authority's certificate {said}: make another with `fedshare keys NEW-DIR`, for everyone")
        return lines


def _stamp(folder: Path) -> _Stamp:
    """What changes whenever a file of an identity is replaced."""
    found = []
    for name in ("ca.crt", *(f"{role}.{kind}" for role in _ROLES for kind in ("crt", "key"))):
        try:
            about = os.stat(folder / name)
            found.append((about.st_mtime_ns, about.st_size, about.st_ino))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def place(keys: Path, name: str) -> Path:
    """The folder of a participant: its own below `keys`, or `keys` itself."""
    return keys / name if (keys / name).is_dir() else keys


def client_id_of(pem: bytes) -> int:
    """The client that the certificate of a peer names. Raises UserError unless it names exactly one."""
    client = client_id(pem)
    if client is None:
        raise UserError("the peer's certificate must name one client, as fedshare:client:3")
    return client


def describe(folder: Path) -> list[tuple[str, datetime]]:
    """Each certificate in DIR, or in the folder of one participant, by name, and when it ends (UTC)."""
    return [(name, held.not_valid_after_utc) for name, held in _certificates(folder)]


def endings(folder: Path) -> list[tuple[str, str]]:
    """Of these the ones that end soon, and when, in words."""
    return [(name, said) for name, held in _certificates(folder) if (said := ending(held))]


def _certificates(folder: Path) -> list[tuple[str, x509.Certificate]]:
    clients = sorted(folder.glob("client-*/client.crt"), key=lambda path: (len(path.parent.name), path))
    paths = [*(folder / role / f"{role}.crt" for role in ("ca", "server")), *clients]
    named = [(path.parent.name, path) for path in paths]
    named += [(name, folder / f"{name}.crt") for name in ("ca", "server", "client")]
    found = [(name, load(path)) for name, path in named if path.exists()]
    if not found:
        raise UserError(f"{folder}: holds no certificates; `fedshare keys` makes them")
    return found


def make(folder: Path, hosts: list[str], clients: int, days: int, passphrase: bytes | None = None) -> list[str]:
    """Make what `folder` lacks for a server at `hosts` and for clients 0 to `clients` - 1, valid for `days`.

    No key that is there is replaced. A certificate is, for the same key, if it lacks a host or ends within 30 days.
    `passphrase`: of the authority's key. Returns a line for each folder in which something was made, or one that says
    that nothing was. Raises UserError, with nothing written, where what is there is damaged or comes from another
    authority.
    """
    if not 1 <= clients <= MAX_CLIENTS:
        raise UserError(f"--clients {clients}: must be from 1 to {MAX_CLIENTS}")
    require_days(days)
    wanted = {folder / "server": [_host(name) for name in (*hosts, "localhost", "127.0.0.1")]}
    for client in range(clients):
        wanted[folder / f"client-{client}"] = [certificates.client_name(client)]
    authority = Authority.load(folder / "ca", passphrase)
    held = {place: _held(place, authority) for place in wanted}

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = {}
    if authority is None:
        authority, made[folder / "ca"] = Authority.make(folder / "ca", passphrase)
    for place, names in wanted.items():
        made[place] = _complete(place, names, held[place], authority, timedelta(days=days))
    lines = [f"{place}: made {', '.join(what)}" for place, what in made.items() if what]
    return lines or [f"{folder}: nothing to make; the server and {clients} clients have all they need"]


def require_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise UserError(f"--days {days}: must be from 1 to {MAX_DAYS}")


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load(cls, place: Path, passphrase: bytes | None) -> "Authority | None":
        """None where there is none yet."""
        missing = [path for path in (place / "ca.key", place / "ca.crt") if not path.exists()]
        if not missing:
            certificate, key = load(place / "ca.crt"), certificates.signing_key(place / "ca.key", passphrase)
            if key.public_key() != certificate.public_key():
                raise UserError(f"{place / 'ca.key'}: is not the key of ca.crt")
            certificates.require_signed(certificate, place / "ca.crt", place / "ca.crt")
            certificates.require_current(certificate, place)
            return cls(certificate, key)
        for signed in (*place.glob("ca.crt"), *place.parent.glob("server/*.crt"), *place.parent.glob("client-*/*.crt")):
            raise UserError(f"{missing[0]}: missing, though {signed} is there; bring it back, or take a new folder")
        return None

    @classmethod
    def make(cls, place: Path, passphrase: bytes | None) -> tuple["Authority", list[str]]:
        if (place / "ca.key").exists():  # of a run that was interrupted
            key, made = certificates.signing_key(place / "ca.key", passphrase), []
        else:
            key, pem = certificates.new_key(passphrase=passphrase)
            made = _write_key(place / "ca.key", pem)
        skid = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
        name = certificates.common_name(f"fedshare authority {skid[:16]}")  # two authorities are told apart by name
        until = certificates.now() + AUTHORITY_LIFE
        certificate = certificates.authority((name, key), until)
        write_atomically(place / "ca.crt", certificates.pem_of(certificate))
        return cls(certificate, key), [*made, f"ca.crt until {until:%Y-%m-%d}"]

    def certify(
        self, name: str, key: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], life: timedelta
    ) -> x509.Certificate:
        """Sign for the participant `name`, "server" or "client-3". It does not outlive the authority."""
        until = min(certificates.now() + life, self.certificate.not_valid_after_utc)
        subject = certificates.common_name(name), key
        return certificates.participant(
            (self.certificate.subject, self.key), name.partition("-")[0], subject, names, until
        )


def _held(place: Path, authority: Authority | None) -> x509.Certificate | None:
    """A participant's certificate, unless it or its key is missing. Raises UserError where something does not fit."""
    role = place.name.partition("-")[0]
    certificate, key, supernode = place / f"{role}.crt", place / f"{role}.key", place / "supernode"
    for path in filter(Path.exists, (key, supernode)):
        private_key(path)
    ca = place.parent / "ca" / "ca.crt"
    if authority and (place / "ca.crt").exists() and load(place / "ca.crt") != authority.certificate:
        raise UserError(f"{place / 'ca.crt'}: must be the same as {ca}")
    if keeps_its_key(place) and not certificate.exists():
        again = f"`fedshare keys sign {place.parent} {place / place.name}.csr`"
        raise UserError(f"{certificate}: missing, and the key is on the client's own host: {again} signs it again")
    if not (certificate.exists() and (key.exists() or keeps_its_key(place))):
        return None
    if key.exists():
        held = verified(certificate, ca)
    else:
        certificates.require_signed(held := load(certificate), certificate, ca)
    client = certificates.client_of(held)
    if place.name != ("server" if client is None else f"client-{client}"):
        raise UserError(f"{certificate}: belongs to {'no client' if client is None else f'client {client}'}")
    return held


def keeps_its_key(place: Path) -> bool:
    """Whether the key of a participant was made on its own host, which asked for a certificate."""
    return (place / f"{place.name}.csr").exists() and not (place / "client.key").exists()


def _complete(
    place: Path, names: list[x509.GeneralName], held: x509.Certificate | None, authority: Authority, life: timedelta
) -> list[str]:
    """Make what the folder of a participant lacks, and say what that was."""
    role = place.name.partition("-")[0]
    elsewhere, made = held is not None and keeps_its_key(place), list[str]()
    if held is not None and elsewhere:
        key = certificates.public_key(held, place / "client.crt")
    else:
        if held is None:  # a certificate whose key is lost: it must not meet the new key, should this be interrupted
            (place / f"{role}.crt").unlink(missing_ok=True)
        own, made = key_at(place / f"{role}.key")
        key = own.public_key()
    if not (place / "ca.crt").exists():
        write_atomically(place / "ca.crt", certificates.pem_of(authority.certificate))
        made.append("ca.crt")
    before = [*held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value] if held else []
    names = list(dict.fromkeys([*before, *names]))
    left = min(RENEWAL, life / 3) if held is None else max(min(RENEWAL, life / 3), certificates.soon(held))
    if held is None or names != before or held.not_valid_after_utc < certificates.now() + left:
        certificate = authority.certify(place.name, key, names, life)
        write_atomically(place / f"{role}.crt", certificates.pem_of(certificate))
        hosts = f" for {', '.join(str(name.value) for name in names)}" if role == "server" else ""
        made.append(f"{role}.crt{hosts} until {certificate.not_valid_after_utc:%Y-%m-%d}")
        if elsewhere:
            made.append(f"which `fedshare keys accept` takes on its host, as {bundle(place, authority).name}")
    if role == "client" and not elsewhere:
        made += supernode(place)
    return made


def bundle(place: Path, authority: Authority) -> Path:
    """One file for a client's host: its certificate, and the authority's."""
    path = place / f"{place.name}.pem"
    write_atomically(path, read(place / "client.crt") + certificates.pem_of(authority.certificate))
    return path


def supernode(place: Path) -> list[str]:
    """Make what is lacking of the key pair for Flower's own authentication, and say what that was."""
    node, made = key_at(place / "supernode")
    public, line = place / "supernode.pub", certificates.ssh_line(node.public_key(), place.name)
    if not public.exists() or read(public) != line:
        write_atomically(public, line)
        made.append(public.name)
    return made


def key_at(path: Path) -> tuple[ec.EllipticCurvePrivateKey, list[str]]:
    """The key at `path`, made if there is none, and what was made."""
    if path.exists():
        return private_key(path), []
    key, pem = certificates.new_key(flower=not path.suffix)
    return key, _write_key(path, pem)


def _write_key(path: Path, pem: bytes) -> list[str]:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, pem, mode=0o600)
    return [path.name]


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
