"""The folder that a run leaves, and what it proves."""

import fcntl
import json
import math
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
from fedshare.files import append, on_disk, sweep, write_atomically, writing
from fedshare.ledger.file import LedgerFile
from fedshare.pace import LATE
from fedshare.seals import SealFile
from fedshare.state import digests
from fedshare.tensors import Tensors, fingerprint

Row = dict[str, Any]
NOTHING = "nothing of the run is there; once it can be written, the same command begins it"


class RunFolder:
    """``config.yaml``, ``metrics.jsonl`` and ``digests.jsonl`` (a line a round), ``checkpoints/``, the model, plots.

    ``initial.safetensors`` is the model that it began with: all of it, or all that no file of weights gives. And the
    ledger, where the strategy has one. ``seals.jsonl`` shows what was changed of config and rows,
    ``signature.json`` by whose key the last seal was signed.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.mark = self.path / "mark"  # who wrote the config, which only that user can tell; see `fedshare.marks`
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
        """Begin a run; `initial` is what it holds of the model that it begins with."""
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
                write_atomically(self.config, config)  # last: with it, the folder holds a run
        except OSError as error:
            self._uncreate()
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        except BaseException:
            self._uncreate()
            raise

    def _uncreate(self) -> None:
        """Leave nothing of a run that has not begun."""
        if not self.config.exists():
            for path in (self.initial, self.versions, self.declared, self.seals.path, self.mark):
                with suppress(OSError):
                    path.unlink()
            with suppress(OSError):
                self.path.rmdir()  # where it is empty

    def is_ours(self, config: str) -> bool:
        """Whether `config`, which was read here, is what this user wrote here."""
        return marks.is_marked(config, self._marks())

    def _marks(self) -> list[str]:
        with suppress(OSError, ValueError):
            return self.mark.read_text().split()
        return []

    def _mark(self, config: str) -> None:
        """Before the config is written, so that no crash leaves one without its mark."""
        try:
            new = marks.mark(config)
        except OSError:  # a user who can have no key
            return
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
        """Keep other processes from running the same run meanwhile. A killed process holds no lock.

        What a killed one has left half-written is removed.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another process is running this run") from None
            for folder in (self.path, self.checkpoints, self.best):
                sweep(folder)
            yield

    def append(self, row: Row, link: Link) -> None:
        """Log a round, on disk when this returns."""
        text = json.dumps(_strict(row))
        if self.seals.exists():
            self.seals.add_row(link.round, text)
        for path, line in ((self.metrics, text), (self.links_file, link.to_json())):
            append(path, f"{line}\n".encode())

    def rewind(self, round: int) -> None:
        """Forget what was logged after `round`, what was made of it, and a line that a crash cut short."""
        logs = (self.links_file, self.metrics)  # and the seals last: a crash leaves them ahead, as in `append`
        kept = {path: [line for line, entry in _lines(path) if entry["round"] <= round] for path in logs}
        sealed = self.seals.exists() and self.seals.rewound(round, self.config.read_bytes(), self._versions())
        if self.ledger.exists():
            self.ledger.rewind(round)
        self.model.unlink(missing_ok=True)  # only now: a damaged line has raised before anything was lost
        for path, lines in kept.items():
            write_atomically(path, "".join(lines))
        if sealed:
            write_atomically(self.seals.path, sealed)

    def amend(self, config: str) -> None:
        """Go on with another config, such as one with more rounds; whose the one before was, this one is."""
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
        """What of config, versions and rows was changed since it was sealed; None too where there is no seal."""
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
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is damaged: {error}") from error


def _strict(value: Any) -> Any:
    """NaN and infinity are not JSON: they become null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def records_flaw(run: RunFolder) -> str | None:
    """What in the lines of `run` contradicts its seal or its digests; what a kill has cut short does not."""
    return run.seal_flaw() or _chain_flaw(run, run.links())


def unwritten(run: RunFolder, links: list[Link]) -> list[str]:
    """What is sealed and not there, rounds or a config: of one thing, a kill may have cut the writing short."""
    if not run.seals.exists():
        return []
    lost = [f"round {seal.round}" for seal in run.seals.read() if seal.round and seal.round > len(links)]
    return lost if run.seals.holds(run.config.read_bytes()) else [*lost, "the newest config"]


def self_check(run: RunFolder) -> str | None:
    """What in `run` contradicts its own records: the first round, participant and tensor; None if nothing does."""
    links = run.links()
    if wrong := run.seal_flaw():
        return wrong
    if wrong := _chain_flaw(run, links) or _contents_flaw(run, links):
        return f"{wrong} (differs from its recorded digest)"
    if len(lost := unwritten(run, links)) > 1:
        return f"{lost[0]} to {lost[-1]} are sealed and missing: removed, or a resume was killed as it went back"
    return None


def _chain_flaw(run: RunFolder, links: list[Link]) -> str | None:
    previous = chain.START
    for position, link in enumerate(links, 1):
        if link.round != position or not link.follows(previous):
            return f"round {position}: the line in {run.links_file.name} does not follow from the lines before"
        previous = link.digest
    logged = [(row["round"], row.get("digest")) for row in run.rows()]
    for link in links:
        if logged[link.round - 1 : link.round] != [(link.round, link.digest)]:
            return f"round {link.round}: {run.metrics.name} has no line of this round with its digest"
    return None


def _contents_flaw(run: RunFolder, links: list[Link]) -> str | None:
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
        return _contradiction(links[:round], *memories, _unrecorded(run, links[:round])) or str(error)
    if wrong := _contradiction(links[:round], *memories, _unrecorded(run, links[:round]), remote=loaded.remote):
        return wrong
    return None if loaded.digest == links[round - 1].digest else "its checkpoint is of another run"


def _unrecorded(run: RunFolder, links: list[Link]) -> set[str]:
    """The clients whose newest memory no link tells of: the upload that came with it was dropped."""
    told = {client: link.round for link in links for client in link.clients}
    rows = run.rows()[: len(links)]
    return {client for row in rows for client in row.get("dropped", ()) if row["round"] > told.get(client, 0)}


def _contradiction(
    links: list[Link],
    server: dict[str, Any],
    clients: dict[int, dict[str, Any]],
    unrecorded: set[str],
    remote: bool = False,
) -> str | None:
    """The first part of these memories, but for those of `unrecorded` clients, whose digest is not the one recorded."""
    recorded: dict[str, chain.Leaves] = {}
    for link in links:
        # Of a memory that its client keeps, only the round is known here.
        recorded |= {
            c: digests({"round": link.round if leaves else 0}) if remote else leaves
            for c, leaves in link.clients.items()
        }
    found = {str(client): digests(state) for client, state in clients.items()}
    if remote:  # beside it stands what is held against a client, of which no digest tells
        found = {str(c): digests({"round": state.get("round")}) for c, state in clients.items() if str(c) in recorded}
    for client in sorted((recorded.keys() | found.keys()) - unrecorded, key=int):
        if path := next(chain.differences(recorded.get(client, {}), found.get(client, {})), None):
            return f"client {client}: {path}"
    path = next(chain.differences(links[-1].server, digests(server)), None)
    return f"server: {path}" if path else None


def verify(a: RunFolder, b: RunFolder | None = None) -> tuple[bool, str]:
    """Whether two runs are the same to the bit, and the sentence to say about it; of one run, whether it is whole."""
    for run in [a, b] if b else [a]:
        if wrong := self_check(run):
            return False, f"{run.path}: {wrong}"
    mine = a.links()
    if not mine:
        return False, f"{a.path}: no round is recorded"
    if b is None:
        whole = f"whole: {len(mine)} rounds, metrics and checkpoints agree with digest {mine[-1].digest}"
        return True, f"{whole}{_unproven(a, mine)}"
    others = b.links()
    models = {run.made_with().get("model") for run in (a, b)} - {None}
    if where := chain.first_difference(mine, others):
        began = "; so do the models that they began with" if len(models) > 1 else ""
        return False, f"differ first in {where}{began}{_late(a) or _late(b)}{_config_difference(a, b)}"
    if len(models) > 1:  # in what is frozen, which no digest of a round covers
        return False, f"differ in the models that they began with{_config_difference(a, b)}"
    if len(mine) != len(others):
        both = min(len(mine), len(others))
        return False, f"equal up to round {both}; {a.path} has {len(mine)}, {b.path} has {len(others)}"
    return True, f"equal: {len(mine)} rounds, digest {mine[-1].digest}"


def _unproven(run: RunFolder, links: list[Link]) -> str:
    """What a whole record does not show."""
    if not run.seals.exists():
        return "; config and rows may be others, for it has no seal: made before there were seals, or it was removed"
    if lost := unwritten(run, links):
        return f"; {lost[0]} is sealed and missing: a kill cut its writing short, or it was removed"
    return ""


_HARMLESS = ("workers:", "timeout:", "checkpoint_every:", "evaluate_every:", "name:", "group:", "rounds:", "deadline_")


def _late(run: RunFolder) -> str:
    """Where a round was closed without some, which is chance: no other run need give the same."""
    late = [row["round"] for row in run.rows() if any(why.startswith(LATE) for why in row.get("dropped", {}).values())]
    return f"; {run.path} closed round {late[0]} without who was late (quorum)" if late else ""


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
