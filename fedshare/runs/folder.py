"""The folder of a run."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from fedshare.errors import UserError
from fedshare.identity import marks
from fedshare.ledger.file import LedgerFile
from fedshare.machine.files import append, on_disk, sweep, write_atomically, writing
from fedshare.rounds.chain import Link
from fedshare.runs.seals import SealFile
from fedshare.tensors import Tensors, fingerprint

Row = dict[str, Any]
NOTHING = "nothing of the run is there; once it can be written, the same command begins it"


class RunFolder:
    """``config.yaml``, ``metrics.jsonl`` and ``digests.jsonl`` (a line per round), ``checkpoints/``, the model, plots.

    ``initial.safetensors`` is the initial model: all of it, or the part that no file of weights provides. There is also
    the ledger, if the strategy has one. ``seals.jsonl`` reveals changes of config and rows, ``signature.json`` holds
    the signature of the last seal.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.mark = self.path / "mark"  # proves that this user wrote the config (`identity.marks`)
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.links_file = self.path / "digests.jsonl"
        self.seals = SealFile(self.path / "seals.jsonl")
        self.signature = self.path / "signature.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.best = self.path / "best"  # a checkpoint of the best round,
        self.best_model = self.path / "best.safetensors"  # and its model
        self.declared = self.path / "declared.json"  # how many examples clients with data of their own have
        self.initial = self.path / "initial.safetensors"
        self.graph = self.path / "graph.json"  # of peers without a server (`fedshare.peers.Shape`)
        self.ledger = LedgerFile(self.path / "ledger")

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"{path}: not a run's folder: it has no {folder.config.name}")
        return folder

    def check_new(self) -> None:
        if self.config.exists():
            raise UserError(
                f"{self.path} already holds a run: go on with `fedshare resume {self.path}` (`fedshare server --resume "
                f"{self.path}` if it was deployed), or name another"
            )

    def create(
        self, config: str, made_with: dict[str, str], initial: Tensors | None = None, sealed: bool = True
    ) -> None:
        """Create the run; `initial` is the part of the initial model to store."""
        self.check_new()
        try:
            with on_disk(self.path, lambda: NOTHING):
                with writing(self.path):
                    self.path.mkdir(parents=True, exist_ok=True)
                if initial is not None:
                    made_with = made_with | {"initial": fingerprint(initial)}
                    write_atomically(self.initial, save_tensors({name: t.clone() for name, t in initial.items()}))
                versions = json.dumps(made_with) + "\n"
                write_atomically(self.versions, versions)
                if sealed:
                    self.seals.begin(config.encode(), versions.encode())
                self._mark(config)
                write_atomically(self.config, config)  # last: a folder with a config holds a run
        except OSError as error:
            self._uncreate()
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        except BaseException:
            self._uncreate()
            raise

    def _uncreate(self) -> None:
        """Remove what `create` has written, if it fails."""
        if not self.config.exists():
            for path in (self.initial, self.versions, self.declared, self.seals.path, self.mark):
                with suppress(OSError):
                    path.unlink()
            with suppress(OSError):
                self.path.rmdir()  # if it is empty

    def is_ours(self, config: str) -> bool:
        """Whether this user wrote `config` here."""
        return marks.is_marked(config, self._marks())

    def _marks(self) -> list[str]:
        with suppress(OSError, ValueError):
            return self.mark.read_text().split()
        return []

    def _mark(self, config: str) -> None:
        """Write the mark before the config, so that a crash never leaves a config without one."""
        try:
            new = marks.mark(config)
        except OSError:  # a user without a key
            return
        write_atomically(self.mark, "".join(f"{one}\n" for one in dict.fromkeys([*self._marks(), new])))

    def made_with(self) -> dict[str, str]:
        """The versions it was started with, and the fingerprints of the ``model`` and of the stored part, ``initial``.

        Unknown ones are missing.
        """
        try:
            found = json.loads(self.versions.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Prevent other processes from running the same run. A killed process holds no lock.

        Half-written files of a killed process are removed.
        """
        with (self.path / ".lock").open("a") as file:
            with suppress(OSError):  # another user's file: whoever can read it can lock it
                os.fchmod(file.fileno(), 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another process is running this run") from None
            for folder in (self.path, self.checkpoints, self.best):
                sweep(folder)
            yield

    def append(self, row: Row, link: Link) -> None:
        """Log a round; it is on disk when this returns."""
        text = json.dumps(_strict(row))
        if self.seals.exists():
            self.seals.add_row(link.round, text)
        for path, line in ((self.metrics, text), (self.links_file, link.to_json())):
            append(path, f"{line}\n".encode())

    def rewind(self, round: int) -> None:
        """Remove the logs after `round`, files derived from them, and a line that a crash cut short."""
        logs = (self.links_file, self.metrics)  # seals last: a crash leaves them ahead, as in `append`
        kept = {path: [line for line, entry in _lines(path) if entry["round"] <= round] for path in logs}
        sealed = self.seals.exists() and self.seals.rewound(round, self.config.read_bytes(), self._versions())
        if self.ledger.exists():
            self.ledger.rewind(round)
        self.model.unlink(missing_ok=True)  # only now: a damaged line raises before anything is lost
        for path, lines in kept.items():
            write_atomically(path, "".join(lines))
        if sealed:
            write_atomically(self.seals.path, sealed)

    def amend(self, config: str) -> None:
        """Replace the config, for example by one with more rounds; it stays marked as this user's if it was."""
        before, data = self.config.read_bytes(), config.encode()
        if data == before:
            return
        if self.is_ours(before.decode()):
            self._mark(config)
        if self.seals.exists():
            self.seals.add_config(data, self._versions())
        write_atomically(self.config, data)

    def rows(self) -> list[Row]:
        return [row for _, row in _lines(self.metrics)]

    def _versions(self) -> bytes:
        return self.versions.read_bytes() if self.versions.exists() else b""

    def seal_flaw(self) -> str | None:
        """Return what was changed in config, versions or rows since sealing; None if nothing, or without a seal."""
        if not self.seals.exists():
            return None
        rows = [(line.removesuffix("\n"), row["round"]) for line, row in _lines(self.metrics)]
        try:
            return self.seals.flaw(self.config.read_bytes(), self._versions(), rows)
        except UserError as error:
            return str(error).removeprefix(f"{self.path}/")

    def links(self) -> list[Link]:
        try:
            return [Link(**entry) for _, entry in _lines(self.links_file)]
        except TypeError as error:
            raise UserError(f"{self.links_file} is damaged: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the complete lines of a JSON Lines file, without a last line that a crash cut short."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
                if type(entry["round"]) is not int:
                    raise ValueError("its round is no number")
                yield line.decode(), entry
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is damaged: {error}") from error


def _strict(value: Any) -> Any:
    """Replace NaN and infinity by null, because they are not JSON."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
