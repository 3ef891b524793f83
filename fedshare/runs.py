"""The folder that a run leaves, and what it proves."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

from fedshare import chain, checkpoint, marks
from fedshare.chain import Link
from fedshare.errors import UserError
from fedshare.files import write_atomically
from fedshare.ledger.file import LedgerFile
from fedshare.state import digests
from fedshare.tensors import Tensors, fingerprint

Row = dict[str, Any]


class RunFolder:
    """``config.yaml``, ``metrics.jsonl`` and ``digests.jsonl`` (a line a round), ``checkpoints/``, the model, plots.

    ``initial.safetensors`` is the model that it began with: all of it, or all that no file of weights gives. And the
    ledger, where the strategy has one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.mark = self.path / "mark"  # who wrote the config, which only that user can tell; see `fedshare.marks`
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.links_file = self.path / "digests.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.best = self.path / "best"  # a checkpoint of the best round,
        self.best_model = self.path / "best.safetensors"  # and its model
        self.declared = self.path / "declared.json"  # how many examples clients with data of their own have
        self.initial = self.path / "initial.safetensors"
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

    def create(self, config: str, made_with: dict[str, str], initial: Tensors | None = None) -> None:
        """Begin a run; `initial` is what it holds of the model that it begins with."""
        self.check_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if initial is not None:
                made_with = made_with | {"initial": fingerprint(initial)}
                write_atomically(self.initial, save_tensors({name: t.clone() for name, t in initial.items()}))
            write_atomically(self.versions, json.dumps(made_with) + "\n")
            self._mark(config)
            write_atomically(self.config, config)  # last: with it, the folder holds a run
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def rewrite(self, config: str) -> None:
        """Change the config of the run; whoever wrote the one before has written this one."""
        if self.is_ours(self.config.read_text("utf-8")):
            self._mark(config)
        write_atomically(self.config, config)

    def is_ours(self, config: str) -> bool:
        """Whether `config`, which was read here, is what this user wrote here."""
        return marks.is_marked(config, self._marks())

    def _marks(self) -> list[str]:
        with suppress(OSError, ValueError):
            return self.mark.read_text().split()
        return []

    def _mark(self, config: str) -> None:
        """Before the config is written, so that no crash leaves one without its mark."""
        with suppress(OSError):  # a user who can have no key
            new = marks.mark(config)
            write_atomically(self.mark, "".join(f"{one}\n" for one in dict.fromkeys([*self._marks(), new])))

    def made_with(self) -> dict[str, str]:
        """The versions it was begun with, and the fingerprints of the ``model`` and of what is held of it, ``initial``.

        What is not known is not there.
        """
        try:
            found = json.loads(self.versions.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running the same run meanwhile. A killed process holds no lock."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another process is running this run") from None
            yield

    def append(self, row: Row, link: Link) -> None:
        """Log a round, on disk when this returns."""
        for path, line in ((self.metrics, json.dumps(_strict(row))), (self.links_file, link.to_json())):
            with path.open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())

    def rewind(self, round: int) -> None:
        """Forget what was logged after `round`, what was made of it, and a line that a crash cut short."""
        logs = (self.metrics, self.links_file)
        kept = {path: [line for line, entry in _lines(path) if entry["round"] <= round] for path in logs}
        if self.ledger.exists():
            self.ledger.rewind(round)
        self.model.unlink(missing_ok=True)  # only now: a damaged line has raised before anything was lost
        for stray in self.path.glob(".*.tmp"):
            stray.unlink()
        for path, lines in kept.items():
            write_atomically(path, "".join(lines))

    def rows(self) -> list[Row]:
        return [row for _, row in _lines(self.metrics)]

    def links(self) -> list[Link]:
        try:
            return [Link(**entry) for _, entry in _lines(self.links_file)]
        except TypeError as error:
            raise UserError(f"{self.links_file} is damaged: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a JSON-lines file. A last line without its end was cut short by a crash: it does not count."""
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
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: line {number} is damaged: {error}") from error


def _strict(value: Any) -> Any:
    """NaN and infinity are not JSON: they become null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def self_check(run: RunFolder) -> str | None:
    """What in `run` contradicts its own digest chain: the first round, participant and tensor; None if nothing does."""
    links = run.links()
    previous = chain.START
    for position, link in enumerate(links, 1):
        if link.round != position or not link.follows(previous):
            return f"round {position}: the line in {run.links_file.name} does not follow from the lines before"
        previous = link.digest
    logged = [(row["round"], row.get("digest")) for row in run.rows()]
    for link in links:
        if logged[link.round - 1 : link.round] != [(link.round, link.digest)]:
            return f"round {link.round}: {run.metrics.name} has no line of this round with its digest"
    for round in sorted(checkpoint.rounds(run.checkpoints)):
        if wrong := _check_checkpoint(run, links, round):
            return f"round {round}: {wrong}"
    if wrong := _check_ledger(run, links) or initial_flaw(run):
        return wrong
    if run.model.exists() and links:
        # Where nothing is shared, the one path is "params" itself.
        params = {path: digest for path, digest in links[-1].server.items() if path.split("/")[0] == "params"}
        try:
            found = digests({"params": load_file(run.model)})
        except SafetensorError as error:
            return f"{run.model.name} is damaged: {error}"
        if path := next(chain.differences(params, found), None):
            return f"{run.model.name}: {path}"
    return None


def _check_ledger(run: RunFolder, links: list[Link]) -> str | None:
    if not run.ledger.exists():
        told = next((link.round for link in links if "ledger/head" in link.server), None)
        return f"round {told}: {run.ledger.path.name} is missing" if told else None
    try:
        contents = run.ledger.read()
    except UserError as error:
        return str(error).removeprefix(f"{run.path}/")
    heads = {place.commit.round: place.head for place in contents.places}
    head = contents.manifest.head
    for link in links:
        head = heads.pop(link.round, head)
        if link.server.get("ledger/head") != digests({"head": head})["head"]:
            return f"round {link.round}: {run.ledger.path.name} leads to another head"
    return f"round {min(heads)}: {run.ledger.path.name} has a commit, and there was no such round" if heads else None


def initial_flaw(run: RunFolder) -> str | None:
    """What is wrong with what `run` holds of the model that it began with."""
    if (recorded := run.made_with().get("initial")) is None:  # a run of fedshare 0.1 holds none
        return None
    if not run.initial.exists():
        return f"{run.initial.name} is missing"
    try:
        same = fingerprint(load_file(run.initial)) == recorded
    except SafetensorError as error:
        return f"{run.initial.name} is damaged: {error}"
    return None if same else f"{run.initial.name} is not the model that the run began with"


def _check_checkpoint(run: RunFolder, links: list[Link], round: int) -> str | None:
    if round > len(links):
        return f"{run.links_file.name} has no line for this checkpoint"
    memories = checkpoint.read_damaged(run.checkpoints, round)
    if memories is None:
        return "its checkpoint cannot be read"
    try:
        loaded = checkpoint.load(run.checkpoints, round)
    except UserError as error:
        return _contradiction(links[:round], *memories) or str(error)
    if wrong := _contradiction(links[:round], *memories, remote=loaded.remote):
        return wrong
    return None if loaded.digest == links[round - 1].digest else "its checkpoint is of another run"


def _contradiction(
    links: list[Link], server: dict[str, Any], clients: dict[int, dict[str, Any]], remote: bool = False
) -> str | None:
    """The first part of these memories whose digest is not the one recorded."""
    recorded: dict[str, chain.Leaves] = {}
    for link in links:
        # Of a memory that its client keeps, only the round is known here.
        recorded |= {
            c: digests({"round": link.round if leaves else 0}) if remote else leaves
            for c, leaves in link.clients.items()
        }
    found = {str(client): digests(state) for client, state in clients.items()}
    for client in sorted(recorded.keys() | found.keys(), key=int):
        if path := next(chain.differences(recorded.get(client, {}), found.get(client, {})), None):
            return f"client {client}: {path}"
    path = next(chain.differences(links[-1].server, digests(server)), None)
    return f"server: {path}" if path else None


def verify(a: RunFolder, b: RunFolder | None = None) -> tuple[bool, str]:
    """Whether two runs are the same to the bit, and the sentence to say about it; of one run, whether it is whole."""
    for run in [a, b] if b else [a]:
        if wrong := self_check(run):
            return False, f"{run.path}: {wrong} (differs from its recorded digest)"
    mine = a.links()
    if not mine:
        return False, f"{a.path}: no round is recorded"
    if b is None:
        return True, f"whole: {len(mine)} rounds, metrics and checkpoints agree with digest {mine[-1].digest}"
    others = b.links()
    models = {run.made_with().get("model") for run in (a, b)} - {None}
    if where := chain.first_difference(mine, others):
        began = "; so do the models that they began with" if len(models) > 1 else ""
        return False, f"differ first in {where}{began}{_config_difference(a, b)}"
    if len(models) > 1:  # in what is frozen, which no digest of a round covers
        return False, f"differ in the models that they began with{_config_difference(a, b)}"
    if len(mine) != len(others):
        both = min(len(mine), len(others))
        return False, f"equal up to round {both}; {a.path} has {len(mine)}, {b.path} has {len(others)}"
    return True, f"equal: {len(mine)} rounds, digest {mine[-1].digest}"


_HARMLESS = ("workers:", "timeout:", "checkpoint_every:", "evaluate_every:", "name:", "group:", "rounds:")


def _config_difference(a: RunFolder, b: RunFolder) -> str:
    """The first lines in which two configs differ that may be why their runs do."""
    mine, other = (
        [line.strip() for line in run.config.read_text().splitlines() if not line.strip().startswith(_HARMLESS)]
        for run in (a, b)
    )
    for left, right in zip_longest(mine, other, fillvalue="nothing"):
        if left != right:
            return f"; so do their configs: {left} | {right}"
    return ""
