"""Who may take part: lists of clients and keys that are let in, or are not, which a server reads while it runs.

    # one entry a line; what follows a # is a note
    client 3  # 2026-11-30 20:31 UTC: left the study
    client 10-19
    key 5b0d...  # the SHA-256 of a public key: every certificate that it has had or will have
    certificate 77ab...  # the SHA-256 of one certificate
    end

Without its last line a list counts as half-written.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedshare.errors import UserError, brief, first_line
from fedshare.identity import certificates
from fedshare.machine.files import write_atomically

DENIED, ALLOWED = "denied", "allowed"  # the lists in a server's folder
END = "end"
_MOST = 16 << 20  # bytes of a list
_ENTRY = re.compile("client ([0-9]{1,9})(?:-([0-9]{1,9}))?|(key|certificate) ([0-9A-Fa-f]{64})")
_HEADER = "# Who is not let in; `fedshare keys revoke` adds to it. A line each, and `end` behind the last:\n"
_HEADER += "# client NUMBER, client FROM-TO, key SHA256 or certificate SHA256; what follows a # is a note.\n"


@dataclass(frozen=True)
class Caller:
    """Who asks to be let in."""

    client: int
    key: str = ""  # SHA-256 of the key of its certificate, in hex; "" without TLS
    certificate: str = ""

    @classmethod
    def of(cls, client: int, pem: bytes | None) -> "Caller":
        """`pem`: the certificate that it shows. Raises UserError where its key is of a kind that nobody certifies."""
        return cls(client) if pem is None else cls(client, *certificates.fingerprints(pem))


@dataclass(frozen=True)
class Roll:
    """What a list holds."""

    clients: tuple[range, ...] = ()
    shown: frozenset[tuple[str, str]] = frozenset()  # "key" or "certificate", and its SHA-256

    @classmethod
    def read(cls, path: Path) -> "Roll":
        """Raises UserError where the file cannot be read, or any line of it."""
        return cls.parse(_text(path), path)

    @classmethod
    def parse(cls, text: str, path: Path) -> "Roll":
        clients, shown, ended = list[range](), set[tuple[str, str]](), False
        for number, line in enumerate(text.split("\n"), 1):
            if not (entry := _entry(line)):
                continue
            where = f"{path}: line {number}"
            if ended:
                raise UserError(f"{where}: follows the line `{END}`, which must be the last")
            if ended := entry == END:
                continue
            if not (found := _ENTRY.fullmatch(entry)):
                allowed = "client NUMBER, client FROM-TO, key SHA256, certificate SHA256"
                raise UserError(f"{where}: {brief(entry, 80)!r} is no entry; must be one of: {allowed}")
            first, last, kind, digest = found.groups()
            if kind:
                shown.add((kind, digest.lower()))
            else:
                clients.append(range(int(first), int(last or first) + 1))
                if not clients[-1]:
                    raise UserError(f"{where}: client {first}-{last}: begins after its end")
        if not ended:
            raise UserError(f"{path}: must end with the line `{END}`: it is half-written, or was cut off")
        return cls(tuple(clients), frozenset(shown))

    def __len__(self) -> int:
        return len(self.clients) + len(self.shown)

    def match(self, caller: Caller) -> str | None:
        """Which of its kinds of entry a caller is under."""
        if any(caller.client in clients for clients in self.clients):
            return "client"
        for kind, digest in (("key", caller.key), ("certificate", caller.certificate)):
            if digest and (kind, digest) in self.shown:
                return kind
        return None


@dataclass
class _File:
    """A list as it was when it was last whole."""

    path: Path
    required: bool  # whether it must be there when a server starts
    say: Callable[[str], None]
    roll: Roll | None = None  # None: there is no such list
    stamp: tuple[int, int, int] | None = None

    def refresh(self) -> bool:
        """Read it again where it was replaced. Whether what it says may have changed."""
        stamp = _stamp(self.path)
        if stamp == self.stamp:
            return False
        self.stamp = stamp
        try:
            if stamp is None:
                raise UserError(f"{self.path}: No such file")
            roll = Roll.read(self.path)
        except UserError as error:
            self.say(f"{error}; what it said before stays in force")
            return False
        self.roll = roll
        self.say(f"{self.path}: read again: {len(roll)} entries")
        return True

    def start(self) -> None:
        self.stamp = _stamp(self.path)
        if self.stamp is not None or self.required:
            self.roll = Roll.read(self.path)


@dataclass
class Admission:
    """The two lists of a server. Without files everyone is let in."""

    files: dict[str, _File] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path | None, deny: str | None, allow: str | None, say: Callable[[str], None]) -> "Admission":
        """The files named, else those that lie in `folder` or will.

        Raises UserError where a file that is named is not there, or one that is there is damaged.
        """
        files = {}
        for name, given in ((DENIED, deny), (ALLOWED, allow)):
            if given or folder:
                path = Path(given) if given else (folder or Path()) / name
                files[name] = _File(path, bool(given), say)
                files[name].start()
        return cls(files)

    def refresh(self) -> bool:
        """Read again what was replaced. Whether what is said may have changed."""
        changed = [file.refresh() for file in self.files.values()]
        return any(changed)

    def objection(self, client: int, pem: bytes | None) -> str | None:
        """Why a client with this certificate is not let in, as it is told."""
        denied, allowed = (file.roll if (file := self.files.get(name)) else None for name in (DENIED, ALLOWED))
        if denied is None and allowed is None:
            return None
        caller = Caller.of(client, pem)
        if denied and (kind := denied.match(caller)):
            return "the operator has barred this client" if kind == "client" else f"its {kind} has been revoked"
        if allowed is not None and not allowed.match(caller):
            return "it is not on the operator's list of those that are let in"
        return None


def bar(path: Path, entries: dict[str, str], when: str) -> list[str]:
    """Add `entries`, and why they are there, to the list at `path`. Returns those that it had not."""
    with _changing(path) as (lines, has):
        new = {entry: why for entry, why in entries.items() if entry not in has}
        lines += [f"{entry}  # {when}{f': {brief(why)}' if why else ''}" for entry, why in new.items()]
    return list(new)


def unbar(path: Path, entries: set[str]) -> list[str]:
    """Remove `entries` from the list at `path`. Returns those that it had."""
    with _changing(path) as (lines, has):
        lines[:] = [line for line in lines if _entry(line) not in entries]
    return sorted(entries & has)


@contextmanager
def _changing(path: Path) -> Iterator[tuple[list[str], set[str]]]:
    """The lines of a list without its end, to be changed in place, and its entries. Raises UserError if it is damaged.

    Two commands at once wait for each other.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = _text(path) if path.exists() else f"{_HEADER}{END}\n"
        Roll.parse(text, path)
        lines = [line for line in text.rstrip("\n").split("\n") if _entry(line) != END]
        before = [*lines]
        yield lines, {_entry(line) for line in lines}
        if lines != before:
            written = "\n".join([*lines, END, ""])
            Roll.parse(written, path)
            write_atomically(path, written)
    finally:
        os.close(folder)


def _entry(line: str) -> str:
    return " ".join(line.partition("#")[0].split())


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise UserError(f"{path}: has more than {_MOST} bytes")
        return data.decode()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: must be text in UTF-8: {first_line(error)}") from None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
