"""The owner of runs: an Ed25519 key pair, with which the last seal of a run is signed.

DIR/owner/owner.key  0600, encrypted where a passphrase is given; stays with the owner
DIR/owner/owner.pub  for whoever checks a signature
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedshare.errors import UserError, first_line
from fedshare.identity.pem import decrypted
from fedshare.machine.files import write_atomically


@dataclass(frozen=True)
class Signature:
    seal: str  # the last one of the run when it was signed
    key: str  # the name of the key: the start of its SHA-256
    signature: str  # 64 bytes, in hex

    @classmethod
    def read(cls, path: Path) -> "Signature":
        try:
            found = cls(**json.loads(path.read_text()))
            forms = {"seal": "[0-9a-f]{64}", "key": "[0-9a-f]{16}", "signature": "[0-9a-f]{128}"}
            if wrong := [name for name, form in forms.items() if not re.fullmatch(form, getattr(found, name))]:
                raise ValueError(f"its {wrong[0]} is none")
            return found
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {first_line(error)}") from error

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self)) + "\n")


def make(folder: Path, passphrase: bytes | None) -> str:
    """Make the pair, or what is lacking of it, and say what that was."""
    place = folder / "owner"
    private, public = place / "owner.key", place / "owner.pub"
    made = []
    if private.exists():
        key = _private(private, passphrase)
    else:
        if public.exists():
            raise UserError(f"{private}: missing, though {public} is there; bring it back, or take a new folder")
        for made_here in (folder, place):
            made_here.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = Ed25519PrivateKey.generate()
        cipher = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher)
        write_atomically(private, pem, mode=0o600)
        made.append(private.name)
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    if not public.exists():
        write_atomically(public, key.public_key().public_bytes(*form))
        made.append(public.name)
    elif _public(public).public_bytes(*form) != key.public_key().public_bytes(*form):
        raise UserError(f"{public}: is not the public half of {private.name}")
    name = _name(key.public_key())
    return f"{place}: made {', '.join(made)}: the key {name}" if made else f"{place}: has the key {name}"


def sign(seal: str, key: Path, passphrase: bytes | None) -> Signature:
    private = _private(key, passphrase)
    return Signature(seal, _name(private.public_key()), private.sign(_message(seal)).hex())


def signed(data: bytes, key: Path, passphrase: bytes | None) -> bytes:
    """Return the signature of the owner whose private key is at `key` under other data, 64 bytes."""
    return _private(key, passphrase).sign(data)


def public(key: Path) -> bytes:
    """Return the public key at `key`, 32 bytes."""
    return _public(key).public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def flaw(signature: Signature, key: Path) -> str | None:
    """Why `signature` is not one of the owner whose public key is at `key`; None where it is."""
    public = _public(key)
    try:
        public.verify(bytes.fromhex(signature.signature), _message(signature.seal))
    except InvalidSignature:
        if (name := _name(public)) != signature.key:
            return f"is signed with the key {signature.key}, and {key} is {name}"
        return "has a signature that is not of its seal: it was changed"
    return None


def _message(seal: str) -> bytes:
    return f"fedshare run, sealed {seal}\n".encode()  # says what it is, so that it is a signature of nothing else


def _name(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _private(path: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    none = "it is no private key; `fedshare keys DIR --owner` makes one"
    key = decrypted(path, _read(path), passphrase, f"the passphrase is another, or {none}", none)
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: is no Ed25519 key; `fedshare keys DIR --owner` makes one")
    return key


def _public(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: is no public key; beside an owner.key lies its owner.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: is no Ed25519 key; beside an owner.key lies its owner.pub")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
