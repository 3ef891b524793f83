"""What a client has on its own disk: what it remembers, a version for each round, and what its privacy has cost."""

import hashlib
import os
import re
import sys
from functools import cache
from pathlib import Path

from fedshare.errors import UserError
from fedshare.machine.files import private_folder, sweep, write_atomically
from fedshare.state import State, pack, unpack


class Memory:
    """The memories of one client in one run. A file's name holds its round and the start of its SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sweep(folder)
        if folder.exists():  # an older version left it open to others
            private_folder(folder)
        self._latest: tuple[int, bytes] = (0, b"")  # the one on disk that is also at hand

    def recall(self, base: int, keep: int) -> State:
        """The memory after round `base`, of which the server heard last; 0 is none.

        Later ones are forgotten: the server never had what came with them. So are those that are older than the last
        one up to round `keep`. Raises UserError where the memory is lost or damaged.
        """
        if base == 0 and not self.folder.exists():
            return {}
        versions = self._versions()
        # Where it remembers nothing now, it may have remembered something at a checkpoint.
        for round in [round for round in versions if round > (base or keep)]:
            versions.pop(round).unlink(missing_ok=True)
        oldest = max((round for round in versions if round <= keep), default=0)
        for round in [round for round in versions if round < oldest]:
            versions.pop(round).unlink(missing_ok=True)
        if base == 0:
            return {}
        if self._latest[0] != base:
            self._latest = (base, self._read(base, versions))
        return unpack(self._latest[1])  # anew each time: a client that raises half-way has spoilt a copy

    def save(self, round: int, state: State) -> None:
        """On disk when this returns."""
        if state:
            data = pack(state)
            private_folder(self.folder)
            write_atomically(self.folder / f"round-{round:06d}-{_sum(data)}.safetensors", data, mode=0o600)
            self._latest = (round, data)

    def _versions(self) -> dict[int, Path]:
        found = {}
        for path in self.folder.glob("round-*.safetensors"):
            if match := re.fullmatch(r"round-(\d{6,})-[0-9a-f]{16}", path.stem):
                found[int(match[1])] = path
        return found

    def _read(self, round: int, versions: dict[int, Path]) -> bytes:
        if round not in versions:
            has = ", ".join(map(str, sorted(versions))) or "none"
            raise UserError(f"the memory of round {round} is not in {self.folder} (rounds there: {has})")
        data = versions[round].read_bytes()
        if _sum(data) != versions[round].stem.rpartition("-")[2]:
            raise UserError(f"the memory {versions[round]} is damaged: its SHA-256 is another")
        return data


class Record:
    """What a client's private training has cost in one run, and the secret that its noise comes of.

    Nothing in it is ever taken back, whatever a server has its client forget. `terms` become part of the secret: what
    is trained in another way gets other noise.
    """

    def __init__(self, folder: Path, terms: bytes = b"") -> None:
        self._folder, self._terms = folder, terms

    @property
    def secret(self) -> str:
        """Hex digits that nobody else knows: of the system's own random bytes, drawn once, and of the terms.

        Raises UserError where the file that holds the bytes is damaged.
        """
        path = self._folder / "secret"
        if not path.exists():
            private_folder(self._folder)
            write_atomically(path, f"{os.urandom(32).hex()}\n", mode=0o600)
        text = path.read_text().strip()
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise UserError(f"the secret {path} is damaged: it must be 64 hex digits")
        return text + self._terms.hex()

    def spend(self, round: int, fit: int, digest: str, steps: int) -> int:
        """Enter the steps of a round's fit number `fit`, whose noise `digest` stands for; the steps of all fits so far.

        On disk when this returns. What is entered already has the same noise, gives the same bits, and costs nothing.
        Raises UserError where the record is damaged.
        """
        path = self._folder / "ledger"
        lines, entries, chained = _checked(path)
        if (entry := f"{round} {fit} {digest} {steps}") not in entries:
            entries.append(entry)
            lines.append(f"{entry} {_link(chained, entry)}")
            write_atomically(path, "".join(f"{line}\n" for line in lines), mode=0o600)
        return sum(int(entry.split(" ")[3]) for entry in entries)


_ENTRY = r"(\d{1,18} \d{1,18} [0-9a-f]{64} \d{1,18})"
_LINE = re.compile(f"{_ENTRY} ([0-9a-f]{{64}})", re.ASCII)
_OLDER = re.compile(_ENTRY, re.ASCII)  # of a version without checksums


def _checked(path: Path) -> tuple[list[str], list[str], str]:
    """The lines of a record, what each enters, and the last checksum, which is over an entry and the line before.

    Lines of older versions have none, and stand first: the first checksum after them covers them too.
    """
    data = path.read_bytes() if path.exists() else b""
    lines, entries, chained = data.decode("latin-1").split("\n"), list[str](), ""
    if lines.pop():
        raise UserError(f"the privacy record {path} is damaged: line {len(lines) + 1} is cut short")
    older = 0
    for number, line in enumerate(lines, 1):
        if match := _LINE.fullmatch(line):
            entry, check = match.groups()
        elif older == number - 1 and _OLDER.fullmatch(line):
            entry, check, older = line, _link(chained, line), number
        else:
            raise UserError(
                f"the privacy record {path} is damaged: line {number} must be round, fit, SHA-256, steps, SHA-256"
            )
        if check != (chained := _link(chained, entry)):
            raise UserError(
                f"the privacy record {path} is damaged: line {number} does not follow from the lines before"
            )
        entries.append(entry)
    if older and older == len(lines):
        _warn(f"the privacy record {path}: its {older} lines are of a version without checksums, and are not checked")
    return lines, entries, chained


def _link(previous: str, entry: str) -> str:
    return hashlib.sha256(f"{previous} {entry}".encode()).hexdigest()


@cache
def _warn(line: str) -> None:
    """Once in a process."""
    print(f"warning: {line}", file=sys.stderr)


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
