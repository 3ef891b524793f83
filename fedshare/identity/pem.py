"""Private keys in PEM: made, read, and kept from others on the host."""

import os
import shlex
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedshare.errors import UserError
from fedshare.machine.files import write_atomically

PublicKey = ec.EllipticCurvePublicKey


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A participant's private key, without a passphrase: it is used when nobody is there to type one."""
    load = serialization.load_pem_private_key if path.suffix else serialization.load_ssh_private_key
    try:
        key = load(read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path}: must be a private key in PEM, on an elliptic curve and without a passphrase")
    return key


def signing_key(path: Path, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    """An authority's private key, which may have a passphrase."""
    wanted = "must be a private key in PEM, on an elliptic curve"
    key = decrypted(path, read(path), passphrase, f"the passphrase is another, or it is damaged: it {wanted}", wanted)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path}: {wanted}")
    return key


def decrypted(path: Path, pem: bytes, passphrase: bytes | None, doubt: str, otherwise: str) -> PrivateKeyTypes:
    """The private key in `pem`, which was read from `path`, of any kind.

    Raises UserError: with `doubt` where the passphrase does not open it, with `otherwise` where it needs none.
    """
    try:
        return serialization.load_pem_private_key(pem, passphrase)
    except TypeError as error:
        wrong = "has no passphrase" if passphrase else "is encrypted: give --passphrase"
        raise UserError(f"{path}: {wrong}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: {doubt if passphrase else otherwise}") from error


def new_key(flower: bool = False, passphrase: bytes | None = None) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A new key, and the PEM of its file. `flower`: in OpenSSH's format, which Flower reads."""
    key = ec.generate_private_key(ec.SECP384R1() if flower else ec.SECP256R1())
    form = serialization.PrivateFormat.OpenSSH if flower else serialization.PrivateFormat.PKCS8
    cipher = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key, key.private_bytes(serialization.Encoding.PEM, form, cipher)


def ssh_line(key: PublicKey, comment: str) -> bytes:
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(*form) + f" {comment}\n".encode()


def key_at(path: Path) -> tuple[ec.EllipticCurvePrivateKey, list[str]]:
    """The key at `path`, made if there is none, and the names of the files made."""
    if path.exists():
        return private_key(path), []
    key, pem = new_key(flower=not path.suffix)
    return key, write_key(path, pem)


def write_key(path: Path, pem: bytes) -> list[str]:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, pem, mode=0o600)
    return [path.name]


def require_private(key: Path) -> None:
    """Raise UserError where others than its owner can use a key.

    A key of root's may be readable by a group of this process, as a service needs. On a read-only mount modes are not
    checked: whoever made the mount set them (containers' secrets, systemd's credentials).
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
