"""The commands that an operator may give a running server, and the state of the run that they read and change."""

from collections.abc import Callable
from typing import Any

from fedshare.errors import NAME, UserError, brief
from fedshare.experiments.hosts.orders import Standing
from fedshare.runs import RunFolder, checkpoint
from fedshare.transport.stream.server import StreamServer

Request = dict[str, Any]
Answer = dict[str, Any]


class Commands:
    """The caller must hold a lock. `folder` and `stream` are set before the first command."""

    def __init__(self) -> None:
        self.standing = Standing()
        self.folder: RunFolder | None = None
        self.stream: StreamServer | None = None
        self.round, self.planned, self.begun = 0, 0, False
        self.stopping = self.checkpoint = False  # requested by the operator
        self.seen: dict[int, dict[str, Any]] = {}  # by client: its last address, and why it left

    def named(self, command: object) -> Callable[[Request], Answer]:
        """Return the command of that name. Raises UserError if there is none."""
        commands: dict[object, Callable[[Request], Answer]] = {
            "status": self.status,
            "suspend": self._suspend,
            "resume": self._resume,
            "ban": self._ban,
            "unban": self._unban,
            "stop": self._stop,
            "checkpoint": self._save,
        }
        if command not in commands:
            raise UserError(f"{brief(str(command), NAME)}: no command; they are {', '.join(map(str, commands))}")
        return commands[command]

    def rule(self) -> None:
        """Tell the stream which clients are banned and suspended."""
        if self.stream:
            self.stream.entrance.banned = self.standing.banned
            self.stream.suspend(self.standing.suspended.keys())

    def _client(self, request: Request) -> int:
        client, clients = request.get("client"), self.stream.settings.clients if self.stream else 0
        if type(client) is not int or client < 0:
            raise UserError("a client is a number, 0 or above")
        if clients and client >= clients:
            raise UserError(f"client {client}: there are {clients} clients, 0 to {clients - 1}")
        return client

    def _suspend(self, request: Request) -> Answer:
        client, rounds = self._client(request), request.get("rounds", 0)
        if type(rounds) is not int or not 0 <= rounds <= 10**9:
            raise UserError("--rounds: must be a number of rounds, at least 1")
        self.standing.keep(self.standing.banned, self.standing.suspended | {client: rounds})
        self.rule()
        return {"said": f"client {client} is suspended {f'for {rounds} rounds' if rounds else 'until it is resumed'}"}

    def _resume(self, request: Request) -> Answer:
        if (client := self._client(request)) not in self.standing.suspended:
            raise UserError(f"client {client}: is not suspended")
        left = {one: rounds for one, rounds in self.standing.suspended.items() if one != client}
        self.standing.keep(self.standing.banned, left)
        self.rule()
        return {"said": f"client {client} takes part again"}

    def _ban(self, request: Request) -> Answer:
        client, reason = self._client(request), request.get("reason", "")
        if not isinstance(reason, str) or reason != brief(reason):
            raise UserError("--reason: must be one line of at most 200 characters")
        self.standing.keep(self.standing.banned | {client: reason}, self.standing.suspended)
        self.rule()
        if self.stream:
            self.stream.expel(client, f"the operator has banned it{reason and f': {reason}'}")
        return {"said": f"client {client} is banned{reason and f': {reason}'}"}

    def _unban(self, request: Request) -> Answer:
        if (client := self._client(request)) not in self.standing.banned:
            raise UserError(f"client {client}: is not banned")
        left = {one: reason for one, reason in self.standing.banned.items() if one != client}
        self.standing.keep(left, self.standing.suspended)
        self.rule()
        return {"said": f"client {client} is no longer banned: it may be started again"}

    def _stop(self, _: Request) -> Answer:
        self.stopping = True
        when = f"after round {self.round + 1}, with a checkpoint" if self.begun else "before its first round"
        return {"said": f"the run stops {when}"}

    def _save(self, _: Request) -> Answer:
        if not self.begun:
            raise UserError("the run has not begun: there is nothing to save")
        self.checkpoint = True
        return {"said": f"a checkpoint is written after round {self.round + 1}", "round": self.round + 1}

    def status(self, _: Request) -> Answer:
        assert self.folder
        assert self.stream
        return {
            "folder": str(self.folder.path),
            "begun": self.begun,
            "round": self.round,
            "rounds": self.planned,
            "checkpoint": next(iter(checkpoint.rounds(self.folder.checkpoints)), 0),
            "stopping": self.stopping,
            "clients": self.stream.settings.clients,
            "connected": self.stream.connected(),
            "seen": {str(client): known for client, known in sorted(self.seen.items())},
            "suspended": {str(client): rounds for client, rounds in sorted(self.standing.suspended.items())},
            "banned": {str(client): reason for client, reason in sorted(self.standing.banned.items())},
            "refused": {str(client): reason for client, reason in sorted(self.stream.journal.refused.items())},
        }
