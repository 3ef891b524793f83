"""The identity of a participant in its folder: what it trusts, what it shows, and when its certificates end."""

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedshare.errors import UserError
from fedshare.identity import certificates
from fedshare.identity.certificates import client_id, ending, load, verified
from fedshare.identity.pem import read, require_private
from fedshare.identity.signing import FILE, Signer

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
        require_private(certificate.with_suffix(".key"))
        pems = read(authority), read(certificate), read(certificate.with_suffix(".key"))
        identity = cls(*pems, folder=folder, stamp=stamp)
        if roles == ["client"] and identity.client_id is None:
            raise UserError(f"{certificate}: must name one client, as fedshare:client:3")
        return identity

    @property
    def client_id(self) -> int | None:
        """The client that it names; None for the server."""
        return client_id(self.certificate)

    @property
    def who(self) -> str:
        client = self.client_id
        return "the server" if client is None else f"client {client}"

    @property
    def signing_key(self) -> bytes | None:
        """The public signing key that it names, 32 bytes; None if it names none."""
        return certificates.signing_key_of(self.certificate)

    def signer(self) -> Signer:
        """Read the private half of its signing key. Raises UserError if it names none, or another than is there."""
        if self.folder is None or self.signing_key is None:
            where = self.folder or self.who
            raise UserError(f"{where}: its certificate names no signing key; `fedshare keys DIR --peers N` adds one")
        signer = Signer.load(self.folder)
        if signer.public != self.signing_key:
            raise UserError(f"{self.folder / FILE}: is not the key that the certificate beside it names")
        return signer

    def outdated(self) -> bool:
        """Whether its folder holds other files now."""
        return self.folder is not None and _stamp(self.folder) != self.stamp

    def endings(self) -> list[str]:
        """A line for each certificate (its own, the authority's) that ends soon."""
        own, ca = (x509.load_pem_x509_certificate(pem) for pem in (self.certificate, self.ca))
        lines = [f"{self.who}'s certificate {said}: renew it with `fedshare keys`"] if (said := ending(own)) else []
        if said := ending(ca):
            lines.append(f"the authority's certificate {said}: make another with `fedshare keys NEW-DIR`, for everyone")
        return lines


def _stamp(folder: Path) -> _Stamp:
    """A value that changes whenever a file of an identity is replaced."""
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
    """The certificates of `describe` that end soon, and when, in words."""
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
