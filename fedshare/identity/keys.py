"""The keys of a deployment over mutual TLS: an authority, and an identity for the server and for each client.

DIR/ca/        ca.crt, ca.key                  the authority; its key stays with the operator
DIR/server/    ca.crt, server.crt, server.key  goes to the server
DIR/client-3/  ca.crt, client.crt, client.key  goes to the host of client 3, and with them
               supernode, supernode.pub        a key pair for Flower's own authentication of nodes
               client-3.csr                    instead of the keys, where these were made on the client's host
               signing.key                     a peer's or a relay's, with which it signs what it says
"""

import ipaddress
import re
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from fedshare.errors import UserError
from fedshare.identity import certificates
from fedshare.identity.authority import Authority, require_days
from fedshare.identity.certificates import RENEWAL, load, verified
from fedshare.identity.pem import key_at, private_key, read, ssh_line
from fedshare.identity.signing import FILE, Signer
from fedshare.machine.files import write_atomically

MAX_CLIENTS = 10_000

_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_PEER = re.compile(r"peer-[0-9]+\.fedshare")
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*(?![0-9]+$){_LABEL}")


def make(
    folder: Path,
    hosts: list[str] | None,
    clients: int,
    days: int,
    passphrase: bytes | None = None,
    peers: bool = False,
) -> list[str]:
    """Make what `folder` lacks for a server at `hosts` and for clients 0 to `clients` - 1, valid for `days`.

    No key that is there is replaced. A certificate is, for the same key, if it lacks a name or ends within 30 days.
    `hosts`: None for no server. `passphrase`: of the authority's key. `peers`: each participant gets a signing key, and
    clients get certificates with which others may dial them. Returns a line for each folder in which something was
    made, or one that says that nothing was. Raises UserError, with nothing written, where what is there is damaged or
    comes from another authority.
    """
    kind = "peers" if peers else "clients"
    if not 1 <= clients <= MAX_CLIENTS:
        raise UserError(f"--{kind} {clients}: must be from 1 to {MAX_CLIENTS}")
    require_days(days)
    wanted = {} if hosts is None else {folder / "server": [_host(name) for name in (*hosts, "localhost", "127.0.0.1")]}
    for client in range(clients):
        place = folder / f"client-{client}"
        wanted[place] = names_of(client, peers or _signs(place))
    authority = Authority.load(folder / "ca", passphrase)
    held = {place: _held(place, authority, peers) for place in wanted}

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = {}
    if authority is None:
        authority, made[folder / "ca"] = Authority.make(folder / "ca", passphrase)
    for place, names in wanted.items():
        made[place] = _complete(place, names, held[place], authority, timedelta(days=days), peers or _signs(place))
    lines = [f"{place}: made {', '.join(what)}" for place, what in made.items() if what]
    server = "" if hosts is None else "the server and "
    return lines or [f"{folder}: nothing to make; {server}{clients} {kind} have all they need"]


def names_of(client: int, peer: bool) -> list[x509.GeneralName]:
    """What the certificate of a client names, but for a peer's signing key, which is its last name."""
    return [certificates.client_name(client), *([x509.DNSName(certificates.peer_host(client))] if peer else [])]


def _signs(place: Path) -> bool:
    return (place / FILE).exists()


def _held(place: Path, authority: Authority | None, peers: bool) -> x509.Certificate | None:
    """A participant's certificate; None if it or its key is missing. Raises UserError on a mismatch."""
    role = place.name.partition("-")[0]
    certificate, key, supernode = place / f"{role}.crt", place / f"{role}.key", place / "supernode"
    for path in filter(Path.exists, (key, supernode)):
        private_key(path)
    signer = Signer.load(place) if _signs(place) else None
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
    signing = certificates.signing_of(held)
    if signer and signing not in (None, signer.public):
        raise UserError(f"{place / FILE}: is not the key that {certificate.name} names")
    if peers and signing is None and keeps_its_key(place):
        again = f"`fedshare keys request DIR --client {client} --peer` there, then `fedshare keys sign` here"
        raise UserError(f"{certificate}: names no signing key, and its key is on the client's own host: {again}")
    return held


def keeps_its_key(place: Path) -> bool:
    """Whether the private key of a participant is on its own host only, which requested a certificate."""
    return (place / f"{place.name}.csr").exists() and not (place / "client.key").exists()


def _complete(
    place: Path,
    names: list[x509.GeneralName],
    held: x509.Certificate | None,
    authority: Authority,
    life: timedelta,
    signs: bool,
) -> list[str]:
    """Make what the folder of a participant lacks, and return what was made."""
    role = place.name.partition("-")[0]
    elsewhere, made = held is not None and keeps_its_key(place), list[str]()
    signing = certificates.signing_of(held) if held else None
    if held is not None and elsewhere:
        key = certificates.public_key(held, place / "client.crt")
    else:
        if held is None or (signing and not _signs(place)):
            # A certificate whose key is lost: it must not meet the new key, should this be interrupted.
            (place / f"{role}.crt").unlink(missing_ok=True)
        own, made = key_at(place / f"{role}.key")
        key = own.public_key()
        if signs or signing:
            signer, new = Signer.at(place)
            signing, made = signer.public, [*made, *new]
    if not (place / "ca.crt").exists():
        write_atomically(place / "ca.crt", certificates.pem_of(authority.certificate))
        made.append("ca.crt")
    before = [*held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value] if held else []
    kept = [name for name in before if not certificates.is_signing_name(name)]
    names = list(dict.fromkeys([*kept, *names, *([certificates.signing_name(signing)] if signing else [])]))
    left = min(RENEWAL, life / 3) if held is None else max(min(RENEWAL, life / 3), certificates.soon(held))
    if held is None or names != before or held.not_valid_after_utc < certificates.now() + left:
        certificate = authority.certify(place.name, key, names, life)
        write_atomically(place / f"{role}.crt", certificates.pem_of(certificate))
        named = [str(name.value) for name in names if not certificates.is_signing_name(name)]
        hosts = f" for {', '.join(named)}" if role == "server" else ""
        made.append(f"{role}.crt{hosts} until {certificate.not_valid_after_utc:%Y-%m-%d}")
        if elsewhere:
            made.append(f"which `fedshare keys accept` takes on its host, as {bundle(place, authority).name}")
    if role == "client" and not elsewhere:
        made += supernode(place)
    return made


def bundle(place: Path, authority: Authority) -> Path:
    """Write one file for a client's host, with its certificate and the authority's."""
    path = place / f"{place.name}.pem"
    write_atomically(path, read(place / "client.crt") + certificates.pem_of(authority.certificate))
    return path


def supernode(place: Path) -> list[str]:
    """Make what is missing of the key pair for Flower's own authentication, and return what was made."""
    node, made = key_at(place / "supernode")
    public, line = place / "supernode.pub", ssh_line(node.public_key(), place.name)
    if not public.exists() or read(public) != line:
        write_atomically(public, line)
        made.append(public.name)
    return made


def _host(name: str) -> x509.GeneralName:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if not _DNS_NAME.fullmatch(name.lower()):
            allowed = "must be a DNS name or an IP address, without a port"
            raise UserError(f"--server {name!r}: {allowed}") from None
        if _PEER.fullmatch(name.lower()):
            raise UserError(f"--server {name}: names of this form are in the certificates of peers") from None
        return x509.DNSName(name.lower())
    if address.is_unspecified or "%" in name:
        raise UserError(f"--server {name}: must be an address by which clients reach the server")
    return x509.IPAddress(address)
