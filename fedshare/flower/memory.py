"""What a client remembers, on its own disk, a version for each round in which it trained."""

import hashlib
import os
import re
from pathlib import Path

from fedshare.errors import UserError
from fedshare.files import write_atomically
from fedshare.state import State, pack, unpack


class Memory:
    """The memories of one client in one run. A file's name holds its round and the start of its SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for stray in folder.glob(".*.tmp"):  # of a process that was killed
            stray.unlink()
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
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / f"round-{round:06d}-{_sum(data)}.safetensors", data)
            self._latest = (round, data)

    def secret(self) -> str:
        """64 hex digits that nobody else knows: the system's own random bytes, drawn once, and kept for the whole run.

        Raises UserError where the file that holds them is damaged.
        """
        path = self.folder / "secret"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, f"{os.urandom(32).hex()}\n", mode=0o600)
        text = path.read_text().strip()
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise UserError(f"the secret {path} is damaged: it must be 64 hex digits")
        return text

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


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
