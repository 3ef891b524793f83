"""Observers of a run, and the two that write its folder: the lines of each round, and the ledger."""

from typing import Protocol

from fedshare.errors import UserError
from fedshare.ledger.file import LedgerFile
from fedshare.ledger.transcript import kept
from fedshare.rounds import Round
from fedshare.runs.folder import RunFolder
from fedshare.state import State


class Observer(Protocol):
    """Called with each finished round, in order.

    A round's checkpoint is written after all observers have been called, so that a run resumed from it finds what they
    wrote.
    """

    def saw(self, done: Round) -> None:
        """Record the round; what is stored is on disk when this returns. Raises OSError if it cannot be written."""


class LineWriter:
    """Writes the seal, the metrics and the digests of each round."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def saw(self, done: Round) -> None:
        self._folder.append(done.row, done.link)


class LedgerWriter:
    """Writes the ledger commits that the server's memory holds (`fedshare.ledger.transcript.kept`)."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def begin(self, state: State) -> bool:
        """Create the file, or check that it leads to `state`; return False if the run has no ledger.

        Raises UserError if it leads elsewhere.
        """
        if (found := kept(state)) is None:
            return False
        manifest, transcript = found
        if transcript.round == 0:
            self._file.create(manifest)
        elif self._file.read().head != transcript.head:
            raise UserError(f"{self._file.path}: does not lead to the checkpoint's round {transcript.round}")
        return True

    def saw(self, done: Round) -> None:
        found = kept(done.state)
        if found and found[1].round == done.number:  # otherwise no upload was usable
            self._file.append(found[1].last, found[1].head)


def writers(folder: RunFolder, state: State) -> list[Observer]:
    """Return the observers that write `folder`, in writing order; the run starts or resumes at `state`.

    The lines are written first, so that the ledger never has a commit of a round without lines.
    """
    ledger = LedgerWriter(folder.ledger)
    return [LineWriter(folder), ledger] if ledger.begin(state) else [LineWriter(folder)]
