"""How a user knows a config again that he wrote: a mark, an HMAC-SHA256 by a key that he alone can read."""

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from fedshare.machine.files import state_folder

_SIZE = 32  # bytes of the key
_ABOUT = b"fedshare config\0"  # the key marks nothing else


def mark(text: str) -> str:
    """The mark of `text`. Raises OSError where this user can have no key."""
    return _mark(_key(create=True), text)


def is_marked(text: str, marks: list[str]) -> bool:
    """Whether one of `marks` is this user's of `text`."""
    try:
        ours = _mark(_key(create=False), text)
    except OSError:
        return False
    return any(hmac.compare_digest(ours.encode(), one.encode()) for one in marks)


def _mark(key: bytes, text: str) -> str:
    return hmac.digest(key, _ABOUT + text.encode(), "sha256").hex()


def _key(create: bool) -> bytes:
    """This user's. One that others may have read or put there is none."""
    try:
        path = state_folder() / "key"
    except RuntimeError as error:  # there is no home
        raise OSError(str(error)) from None
    if create and not path.exists():
        _create(path)
    with path.open("rb") as file:
        about, key = os.fstat(file.fileno()), file.read(_SIZE + 1)
    if about.st_uid != os.geteuid() or about.st_mode & 0o077 or len(key) != _SIZE:
        raise OSError(f"{path}: is not {_SIZE} bytes that belong to this user alone (chmod 600)")
    return key


def _create(path: Path) -> None:
    """Whole from the first moment; where two processes come at once, both get the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_bytes(_SIZE))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
