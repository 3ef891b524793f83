"""What a peer says, on its disk before it is sent: a retry repeats the same bytes."""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from fedshare.errors import UserError
from fedshare.identity.signing import Signer
from fedshare.machine.failpoints import failpoint
from fedshare.machine.files import private_folder, sweep, write_atomically
from fedshare.relay.entries import Entry

_NAME = re.compile(r"said-([0-9]{1,19})")


class Spool:
    """The entries of a peer that the log may not hold yet. Raises UserError if one of them is damaged."""

    def __init__(self, folder: Path, run: bytes, peer: int, signer: Signer) -> None:
        private_folder(folder)
        sweep(folder)
        self._folder, self._run, self._peer, self._signer = folder, run, peer, signer
        numbers = [int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name))]
        self.waiting = {number: self._read(number) for number in sorted(numbers)}
        self.last = max(numbers, default=0)  # no number is used twice

    def say(self, kind: int, round: int, body: bytes, head: bytes) -> Entry:
        """Return the entry to be sent, which is on disk: what was said for this round before, or `body`."""
        for entry in self.waiting.values():
            if (entry.kind, entry.round) == (kind, round):
                return entry
        said = Entry(kind, self._peer, self.last + 1, round, body)
        entry = Entry(kind, self._peer, said.number, round, body, self._signer.sign(said.signed(self._run, head)))
        data = entry.pack()
        failpoint("peer before spool")
        write_atomically(self._path(entry.number), hashlib.sha256(data).digest() + data, 0o600)
        failpoint("peer after spool")
        self.waiting[entry.number], self.last = entry, entry.number
        return entry

    def settled(self, number: int) -> None:
        """Forget what was said up to `number`: the log holds it, or never will. The last one stays on disk."""
        for old in [one for one in self.waiting if one <= number]:
            del self.waiting[old]
        for path in self._folder.iterdir():
            if (found := _NAME.fullmatch(path.name)) and int(found[1]) <= number and int(found[1]) != self.last:
                with suppress(OSError):
                    path.unlink()

    def skip(self, number: int) -> None:
        """Use no number up to `number`: the log has it."""
        self.last = max(self.last, number)

    def _path(self, number: int) -> Path:
        return self._folder / f"said-{number}"

    def _read(self, number: int) -> Entry:
        path = self._path(number)
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise UserError(
                f"{path}: is damaged: remove it if the log holds what this peer said last; see docs/relay.md"
            )
        entry, _ = Entry.unpack(memoryview(data)[32:])
        if (entry.peer, entry.number) != (self._peer, number):
            raise UserError(f"{path}: holds what peer {entry.peer} said under number {entry.number}")
        return entry
