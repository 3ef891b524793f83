"""Ed25519 signatures of participants under what they say, with a key that their certificate names.

TLS shows who sends a message, and only to the receiver. A signature shows who said it to everyone to whom it is passed
on, so that nobody can change it on the way, and nobody can deny it.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedshare.errors import UserError
from fedshare.identity.pem import read, require_private, write_key

FILE = "signing.key"  # in a participant's folder, 0600
SIGNATURE = 64  # bytes
PUBLIC = 32
RUN = 32

_LAYOUT = struct.Struct("<16s32sIQQBQ")
_MAGIC = b"fedshare said 1\0"


@dataclass(frozen=True)
class Signer:
    """The private half of a participant's signing key."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> "Signer":
        """Read ``signing.key`` in a participant's folder. Raises UserError."""
        path = folder / FILE
        if not path.exists():
            raise UserError(f"{path}: missing; `fedshare keys --peers` makes it, and a certificate that names it")
        require_private(path)
        try:
            key = serialization.load_pem_private_key(read(path), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise UserError(f"{path}: must be an Ed25519 key in PEM, without a passphrase")
        return cls(key)

    @classmethod
    def at(cls, folder: Path) -> tuple["Signer", list[str]]:
        """Return the key in a participant's folder, made if there is none, and the names of the files made."""
        if (folder / FILE).exists():
            return cls.load(folder), []
        key = Ed25519PrivateKey.generate()
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return cls(key), write_key(folder / FILE, key.private_bytes(*form))

    @classmethod
    def unprotected(cls, participant: str) -> "Signer":
        """Return the key of a participant where no keys are used: without TLS, on one machine."""
        seed = hashlib.sha256(f"unprotected {participant}".encode()).digest()
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public(self) -> bytes:
        """The public half, 32 bytes."""
        return self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def sign(self, data: bytes) -> bytes:
        """Return a signature of 64 bytes."""
        return self._key.sign(data)


class Verifier:
    """The public half of a participant's signing key: 32 bytes. Raises ValueError on anything else."""

    def __init__(self, public: bytes) -> None:
        self.public = public
        self._key = Ed25519PublicKey.from_public_bytes(public)

    def accepts(self, data: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def signed_part(run: bytes, peer: int, number: int, round: int, kind: int, body: bytes) -> bytes:
    """Return the bytes under a signature: a fixed layout, in little-endian order, and then the body.

    `run` is the run's name, 32 bytes; `number` counts what `peer` says; `kind` tells what the body means.
    """
    return _LAYOUT.pack(_MAGIC, run, peer, number, round, kind, len(body)) + body
