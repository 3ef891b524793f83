"""The seal of a run's records: a hash chain over its config, and over each row of ``metrics.jsonl`` as written.

It reveals later changes, and is never compared between runs: rows hold durations, configs hold names. A user with
write access can make a new chain, but cannot forge a signature of its last seal (`fedshare.identity.owner`).

A row is sealed before it is written, and a config before it replaces another. So a kill leaves seals ahead of the
records, never a row without a seal: such a row was added.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedshare.errors import UserError
from fedshare.machine.files import append, write_atomically

_TAIL = 4096  # bytes at the end of the file that hold more than one line


@dataclass(frozen=True)
class Seal:
    """A line of the file: what it covers, and the SHA-256 of that and the line before."""

    covers: dict[str, str | int]  # config and made_with, by their SHA-256; or a round and its row's
    digest: str

    @classmethod
    def over(cls, covers: dict[str, str | int], previous: str) -> "Seal":
        text = json.dumps([previous, covers], separators=(",", ":"), sort_keys=True)
        return cls(covers, _sha256(text.encode()))

    @classmethod
    def read(cls, line: bytes, previous: str) -> "Seal | None":
        """Parse `line`; None unless it is, to the byte, the seal that follows the digest `previous`."""
        try:
            covers = json.loads(line)
            del covers["seal"]
            seal = cls.over(covers, previous)
            return seal if seal.to_line() == line + b"\n" else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    @property
    def round(self) -> int | None:
        """The round; None if it seals a config."""
        found = self.covers.get("round")
        return found if isinstance(found, int) else None

    def to_line(self) -> bytes:
        return json.dumps(self.covers | {"seal": self.digest}, separators=(",", ":")).encode() + b"\n"


class SealFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether the run has a seal: runs made by older versions have none."""
        return self.path.is_file()

    def begin(self, config: bytes, made_with: bytes) -> None:
        """Write a seal without rows, replacing any other."""
        write_atomically(self.path, Seal.over(_config(config, made_with), "").to_line())

    def add_row(self, round: int, row: str) -> None:
        """Seal a row; it is on disk when this returns."""
        self._add({"round": round, "row": _sha256(row.encode())})

    def add_config(self, config: bytes, made_with: bytes) -> None:
        """Seal a config; it is on disk when this returns."""
        self._add(_config(config, made_with))

    def rewound(self, round: int, config: bytes, made_with: bytes) -> bytes:
        """Return the contents of the file without the rows after `round`, and with the current config."""
        kept: list[Seal] = []
        for seal in self.read():
            if seal.round is not None and seal.round > round:
                break
            kept.append(seal)
        now = _config(config, made_with)
        if [seal.covers for seal in kept if seal.round is None][-1] != now:
            kept.append(Seal.over(now, kept[-1].digest))
        return b"".join(seal.to_line() for seal in kept)

    def read(self) -> list[Seal]:
        """Return the whole chain, which begins with a config, without a last line that a crash cut short.

        Raises UserError at a line that does not follow.
        """
        seals: list[Seal] = []
        rounds = 0
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], 1):
            seal = _parsed(line, seals[-1].digest if seals else "")
            if seal is None or seal.round not in ((None, rounds + 1) if seals else (None,)):
                raise UserError(f"{self.path}: line {number} does not follow from the lines before")
            rounds = seal.round or rounds
            seals.append(seal)
        if not seals:
            raise UserError(f"{self.path} is damaged: it seals no config")
        return seals

    def flaw(self, config: bytes, made_with: bytes, rows: Iterable[tuple[str, int]]) -> str | None:
        """Return what has changed since sealing; `rows` are lines and their rounds. Rows may be missing at the end."""
        seals = self.read()
        configs, sealed = ([seal for seal in seals if (seal.round is None) == of] for of in (True, False))
        # A new config is sealed before it is written: after a kill, the file may still hold the previous one.
        possible = configs[-2:] if seals[-1].round is None else configs[-1:]
        if _sha256(made_with) != configs[-1].covers["made_with"]:
            return "versions.json was changed since it was sealed"
        if _sha256(config) not in [seal.covers["config"] for seal in possible]:
            return "config.yaml was changed since it was sealed"
        for position, (line, round) in enumerate(rows, 1):
            if round > position:
                return f"metrics.jsonl: the row of round {position} is missing"
            if round < position:
                return f"metrics.jsonl: line {position} is a second row of round {round}"
            if round > len(sealed):
                return f"metrics.jsonl: the row of round {round} was added: no seal covers it"
            if _sha256(line.encode()) != sealed[round - 1].covers["row"]:
                return f"metrics.jsonl: the row of round {round} was changed since it was sealed"
        return None

    def holds(self, config: bytes) -> bool:
        """Whether this is the config that was sealed last."""
        return [seal for seal in self.read() if seal.round is None][-1].covers["config"] == _sha256(config)

    def _add(self, covers: dict[str, str | int]) -> None:
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            last = json.loads(file.read().splitlines()[-1])
        append(self.path, Seal.over(covers, last["seal"]).to_line())


def _config(config: bytes, made_with: bytes) -> dict[str, str | int]:
    return {"config": _sha256(config), "made_with": _sha256(made_with)}


def _parsed(line: bytes, previous: str) -> Seal | None:
    if (seal := Seal.read(line, previous)) is None:
        return None
    covers = seal.covers
    whole = covers.keys() in ({"config", "made_with"}, {"round", "row"}) and type(covers.get("round", 0)) is int
    return seal if whole else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
