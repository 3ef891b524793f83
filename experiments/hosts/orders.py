"""What an operator has ordered for a run: who is banned, and who is suspended. It lies in the run's folder."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from fedshare.errors import UserError
from fedshare.machine.files import write_atomically

NAME = "orders.json"


class Orders(Protocol):
    """What a run asks of its operator, while it is under way."""

    def opens(self, folder: Path) -> None:
        """The run is, or will be, in `folder`."""

    def ready(self) -> None:
        """Raise RunHalted where there is to be no further round, OSError where the audit log cannot be written."""

    def due(self) -> bool:
        """Whether a checkpoint is wanted, after this round; it is then no longer."""


class NoOrders:
    def opens(self, folder: Path) -> None: ...

    def ready(self) -> None: ...

    def due(self) -> bool:
        return False


class Standing:
    """The orders that hold until they are taken back. `path` is None before the run's folder is known."""

    def __init__(self) -> None:
        self.banned: dict[int, str] = {}  # by client: why
        self.suspended: dict[int, int] = {}  # by client: for how many more rounds; 0: until it is resumed
        self._path: Path | None = None

    def open(self, path: Path) -> None:
        """Recall what was ordered. Raises UserError where the file is damaged: nobody is let in by accident."""
        self._path = path
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text())
            self.banned = {int(client): str(reason) for client, reason in found["banned"].items()}
            self.suspended = {int(client): int(rounds) for client, rounds in found["suspended"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): mend it, or move it away: then nobody is banned") from error

    def keep(self, banned: dict[int, str], suspended: dict[int, int]) -> None:
        """These, and no others; on disk when this returns. Raises OSError, and then those before hold."""
        if self._path is not None:
            text = json.dumps({"banned": banned, "suspended": suspended}, sort_keys=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, f"{text}\n", mode=0o600)
        self.banned, self.suspended = banned, suspended

    def after_round(self, absent: Collection[int]) -> list[int]:
        """Count a round for those who missed it; the clients whose suspension has ended."""
        left = {client: rounds - (rounds > 0 and client in absent) for client, rounds in self.suspended.items()}
        ended = [client for client, rounds in left.items() if rounds == 0 and self.suspended[client] > 0]
        if left != self.suspended:
            self.keep(self.banned, {client: rounds for client, rounds in left.items() if client not in ended})
        return ended
