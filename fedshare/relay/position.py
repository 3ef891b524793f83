"""How far a peer has followed a log, on its disk: the last head that it has acted on, and who takes part after it."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedshare.errors import UserError
from fedshare.machine.files import private_folder, sweep, write_atomically
from fedshare.relay.commits import Head
from fedshare.relay.members import Members

KEPT = 3
_NAME = re.compile(r"after-([0-9]{1,19})\.json")


@dataclass(frozen=True)
class Position:
    """The end of a log after a commit. `key`: the public key of the relay that signed it."""

    run: bytes
    key: bytes
    head: Head
    members: Members

    def pack(self) -> bytes:
        said = {
            "run": self.run.hex(),
            "key": self.key.hex(),
            "round": self.head.round,
            "head": self.head.head.hex(),
            "signature": self.head.signature.hex(),
            "members": self.members.pack().decode(),
        }
        return json.dumps(said, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, data: bytes) -> "Position":
        """Raises ValueError."""
        try:
            said = json.loads(data)
            round, head, signature = int(said["round"]), bytes.fromhex(said["head"]), bytes.fromhex(said["signature"])
            members = Members.unpack(said["members"].encode())
            run, key = bytes.fromhex(said["run"]), bytes.fromhex(said["key"])
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no position in a log: {error}") from error
        if members.round != round or not len(run) == len(key) == len(head) == 32:
            raise ValueError("no position in a log")
        return cls(run, key, Head(round, head, signature), members)


class Positions:
    """The last positions of a peer, in a folder."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder)
        sweep(folder)
        self._folder = folder

    def write(self, position: Position) -> None:
        """Keep a position; on disk when this returns."""
        data = position.pack()
        path = self._path(position.head.round)
        write_atomically(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data, 0o600)
        for old in self.rounds()[:-KEPT]:
            with suppress(OSError):
                self._path(old).unlink()

    def rounds(self) -> list[int]:
        return sorted(int(found[1]) for path in self._folder.iterdir() if (found := _NAME.fullmatch(path.name)))

    def read(self, round: int) -> Position | None:
        """Return the position after a round, if it is kept. Raises UserError if it is damaged."""
        path = self._path(round)
        if not path.exists():
            return None
        digest, _, data = path.read_bytes().partition(b"\n")
        try:
            if hashlib.sha256(data).hexdigest().encode() != digest:
                raise ValueError("its digest differs")
            return Position.unpack(data)
        except ValueError as error:
            raise UserError(
                f"{path}: is damaged ({error}): remove it, and the log is followed from an earlier round"
            ) from error

    def forget(self) -> None:
        """Follow the log from its beginning again."""
        for round in self.rounds():
            self._path(round).unlink()

    def newest(self) -> Position | None:
        rounds = self.rounds()
        return self.read(rounds[-1]) if rounds else None

    def _path(self, round: int) -> Path:
        return self._folder / f"after-{round}.json"
