"""The operator's orders for a run, banned and suspended clients, stored in the run's folder."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from fedshare.errors import UserError
from fedshare.machine.files import write_atomically

NAME = "orders.json"


class Orders(Protocol):
    """What a run asks of its operator while it is running."""

    def opens(self, folder: Path) -> None:
        """Called with the run's folder, which may not exist yet."""

    def ready(self) -> None:
        """Raise RunHalted if no further round is wanted, OSError if the audit log cannot be written."""

    def due(self) -> bool:
        """Whether a checkpoint is wanted after this round; clears the request."""


class NoOrders:
    def opens(self, folder: Path) -> None: ...

    def ready(self) -> None: ...

    def due(self) -> bool:
        return False


class Standing:
    """The orders in force until revoked. `path` is None before the run's folder is known."""

    def __init__(self) -> None:
        self.banned: dict[int, str] = {}  # by client: the reason
        self.suspended: dict[int, int] = {}  # by client: remaining rounds; 0: until resumed
        self._path: Path | None = None

    def open(self, path: Path) -> None:
        """Load the orders. Raises UserError if the file is damaged, so that no client is admitted by accident."""
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
        """Replace the orders; on disk when this returns. Raises OSError, which leaves the old ones in force."""
        if self._path is not None:
            text = json.dumps({"banned": banned, "suspended": suspended}, sort_keys=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, f"{text}\n", mode=0o600)
        self.banned, self.suspended = banned, suspended

    def after_round(self, absent: Collection[int]) -> list[int]:
        """Count a missed round for the suspended; return the clients whose suspension has ended."""
        left = {client: rounds - (rounds > 0 and client in absent) for client, rounds in self.suspended.items()}
        ended = [client for client, rounds in left.items() if rounds == 0 and self.suspended[client] > 0]
        if left != self.suspended:
            self.keep(self.banned, {client: rounds for client, rounds in left.items() if client not in ended})
        return ended
