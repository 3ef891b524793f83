"""The certificate of a server or client, and the client ids of a host."""

import argparse
from pathlib import Path

from fedshare.errors import UserError
from fedshare.identity.identity import Identity, place
from fedshare.transport.stream.diagnose import is_local, split


def identity_of(keys: str | None, name: str, address: str, insecure: bool) -> Identity | None:
    """Return the certificate; None if none is needed: on this machine, or with --insecure."""
    if keys:
        folder = Path(keys)
        if not (folder / name).is_dir() and not any(folder.glob("*.crt")):
            raise UserError(f"--keys {keys}: holds no certificate of {name}; `fedshare keys` makes it")
        return Identity.load(place(folder, name))
    if insecure or is_local(split(address)[0]):
        return None
    raise UserError(f"{address}: off this machine it takes TLS: --keys DIR (`fedshare keys` makes one), or --insecure")


def client_identity(options: argparse.Namespace, id: int) -> Identity | None:
    identity = identity_of(options.keys, f"client-{id}", options.server, options.insecure)
    if identity and identity.client_id != id:
        raise UserError(f"--keys {options.keys}: its certificate is client {identity.client_id}'s, not client {id}'s")
    return identity


def client_ids(options: argparse.Namespace) -> list[int]:
    if options.id is None:
        if options.keys and (Path(options.keys) / "client.crt").exists():
            identity = Identity.load(Path(options.keys))
            if identity.client_id is not None:
                return [identity.client_id]
        raise UserError("--id: say which clients this host is, as in --id 0 or --id 0,1,2")
    parts = options.id.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise UserError(f"--id {options.id}: is not a list of client numbers such as 0,1,2")
    return [int(part) for part in parts]
