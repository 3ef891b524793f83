"""An operator's end of a running server: it takes commands by a local socket, and keeps the audit log."""

import pwd
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedshare.errors import NAME, RunHalted, UserError, brief, first_line
from fedshare.experiments.hosts import orders
from fedshare.experiments.hosts.orders import Standing
from fedshare.experiments.tracking import Note, NoTracker, Watcher, _note
from fedshare.report.clock import say
from fedshare.runs import RunFolder, checkpoint
from fedshare.runs import audit as audits
from fedshare.runs.audit import Audit
from fedshare.transport import control
from fedshare.transport.stream.server import StreamServer

_Numbers = dict[str, Any]


class Desk:
    """Orders for a run, and a Watcher of it that enters what happens in the audit log.

    It begins with `serve`. The log lies in the run's folder once there is one, or at `audit`; without a run of ours
    (`opens` is never called) there is a log only with `audit`, and no socket. `other` hears what a Watcher does.
    """

    def __init__(self, audit: str | None = None, other: Watcher | None = None) -> None:
        self.stopped = False  # because the operator has asked for it
        self._audit, self._asked = Audit(), audit
        self._other = other
        self._standing = Standing()
        self._control: control.Control | None = None
        self._stream: StreamServer | None = None
        self._folder: RunFolder | None = None
        self._made = False  # the folder, for the socket
        self._checkpoint = self._stopping = False  # what is wanted
        self._round, self._planned, self._begun = 0, 0, False
        self._seen: dict[int, _Numbers] = {}  # by client, for who asks for the status,
        self._callers: dict[int, dict[str, str | int]] = {}  # and for entries in the log
        self._lock = threading.Lock()  # one command at a time

    def __enter__(self) -> Self:
        if self._asked:
            self._audit.open(Path(self._asked))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._control:
            self._control.close()
        how = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else ""
        if self.stopped:
            how = "stopped by the operator"
        self._audit.note("ended", round=self._round, how=how or brief(first_line(error or RunHalted("")), 400))
        try:
            self._audit.close()
        except OSError:
            if kind is None:
                raise
        finally:
            if self._made and self._folder:
                with suppress(OSError):  # where it is empty
                    self._folder.path.rmdir()

    def serve(self, stream: StreamServer, folder: str = "") -> None:
        """Before `stream` starts: hear of it, and have a say in whom it lets in, as was ordered in `folder`."""
        self._stream = stream
        if folder:
            self._standing.open(Path(folder) / orders.NAME)
            self._rule()
        stream.record = self._record
        if self._other:
            stream.refusal = self._other.refused
        self._audit.note("listening", address=stream.address, version=stream.settings.version)

    def _record(self, event: str, about: str, /, **what: str | int) -> None:
        client = what.get("client")
        if isinstance(client, int) and event != "refused":
            self._seen[client] = {"address": what["address"]} | ({"gone": what["reason"]} if event == "gone" else {})
            self._callers[client] = {name: value for name, value in what.items() if name != "reason"}
        self._audit.note(event, about, **what)

    def _about(self, client: int) -> dict[str, str | int]:
        """A client's number, and the address and certificate with which it was here the last time."""
        return self._callers.get(client, {"client": client})

    # Orders.

    def opens(self, folder: Path) -> None:
        self._folder = RunFolder(folder)
        self._standing.open(folder / orders.NAME)
        self._rule()
        if (folder / audits.NAME).exists():  # one that was altered is refused before anything is done
            self._open()
        try:
            if not folder.exists():
                folder.mkdir(parents=True)
                self._made = True
            self._control = control.Control(folder / control.NAME, self._answer)
        except OSError as error:  # a file system without sockets, or that is full: the run itself says that better
            say(f"no commands of `fedshare admin` are taken: {folder / control.NAME}: {error.strerror or error}")

    def ready(self) -> None:
        self._audit.check()
        with self._lock:  # which a command holds until it is entered in the log
            self.stopped = self._stopping
        if self.stopped:
            after = f"after round {self._round}" if self._round else "before its first round"
            raise RunHalted(f"stopped by the operator {after}")

    @property
    def goes_on(self) -> str:
        """How, for the operator who has stopped the run."""
        return f"; the same command with --resume {self._folder.path} goes on" if self._folder and self._round else ""

    def due(self) -> bool:
        wanted, self._checkpoint = self._checkpoint, False
        return wanted

    # A Watcher.

    def start(self, config: dict[str, Any], name: str, group: str | None, folder: Path, note: Note = _note) -> None:
        rows = RunFolder(folder).rows()
        self._round, self._planned, self._begun = rows[-1]["round"] if rows else 0, config["rounds"], True
        self._open()
        event = "resumed" if rows else "began"
        self._audit.note(event, round=self._round, name=brief(name, NAME), folder=str(folder), rounds=self._planned)
        self._audit.flush()
        (self._other or NoTracker()).start(config, name, group, folder, note)

    def log(self, row: dict[str, Any]) -> None:
        """Raises OSError where the audit log cannot be written."""
        with self._lock:
            self._round = row["round"]
            self._audit.note("round", round=self._round, digest=row["digest"])
            for client in self._standing.after_round(row.get("absent", ())):
                self._audit.note("resumed client", **self._about(client), reason="its rounds are over")
                say(f"client {client} takes part again: the rounds for which it was suspended are over")
            self._rule()
        self._audit.flush()
        (self._other or NoTracker()).log(row)

    def finish(self, completed: bool = True) -> None:
        (self._other or NoTracker()).finish(completed)

    def refused(self, reason: str, client: int | None = None) -> None:
        """By the run, after the stream has let it in."""
        if client is None:
            self._audit.note("refused", "the run", reason=reason)
        else:
            self._audit.note("refused", f"client {client}", **self._about(client), reason=reason)
        if self._other:
            self._other.refused(reason, client)

    # Commands.

    def _open(self) -> None:
        if self._audit.path is None and self._folder:
            self._audit.open(self._folder.path / audits.NAME)

    def _rule(self) -> None:
        """Let the stream know who is banned and suspended."""
        if self._stream:
            self._stream.banned = self._standing.banned
            self._stream.suspend(self._standing.suspended.keys())

    def _answer(self, request: dict[str, Any], user: int) -> dict[str, Any]:
        command = request.get("command")
        commands: dict[object, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "status": self._status,
            "suspend": self._suspend,
            "resume": self._resume,
            "ban": self._ban,
            "unban": self._unban,
            "stop": self._stop,
            "checkpoint": self._save,
        }
        if command not in commands:
            raise UserError(f"{brief(str(command), NAME)}: no command; they are {', '.join(map(str, commands))}")
        with self._lock:
            if command == "status":
                return self._status(request)
            try:
                answer = commands[command](request)
            except OSError as error:
                raise UserError(f"{error.filename}: {error.strerror}: nothing was done") from error
            self._open()  # also where the run has not begun, but not for a command that was refused
            said = {name: value for name, value in request.items() if name in ("rounds", "reason")}
            said |= self._about(request["client"]) if "client" in request else {}
            self._audit.note("operator", command=str(command), user=user, login=_login(user), **said)
            say(f"the operator: {answer['said']}")
        self._audit.flush()
        return answer

    def _client(self, request: dict[str, Any]) -> int:
        client, clients = request.get("client"), self._stream.settings.clients if self._stream else 0
        if type(client) is not int or client < 0:
            raise UserError("a client is a number, 0 or above")
        if clients and client >= clients:
            raise UserError(f"client {client}: there are {clients} clients, 0 to {clients - 1}")
        return client

    def _suspend(self, request: dict[str, Any]) -> dict[str, Any]:
        client, rounds = self._client(request), request.get("rounds", 0)
        if type(rounds) is not int or not 0 <= rounds <= 10**9:
            raise UserError("--rounds: must be a number of rounds, at least 1")
        self._standing.keep(self._standing.banned, self._standing.suspended | {client: rounds})
        self._rule()
        return {"said": f"client {client} is suspended {f'for {rounds} rounds' if rounds else 'until it is resumed'}"}

    def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        if (client := self._client(request)) not in self._standing.suspended:
            raise UserError(f"client {client}: is not suspended")
        left = {one: rounds for one, rounds in self._standing.suspended.items() if one != client}
        self._standing.keep(self._standing.banned, left)
        self._rule()
        return {"said": f"client {client} takes part again"}

    def _ban(self, request: dict[str, Any]) -> dict[str, Any]:
        client, reason = self._client(request), request.get("reason", "")
        if not isinstance(reason, str) or reason != brief(reason):
            raise UserError("--reason: must be one line of at most 200 characters")
        self._standing.keep(self._standing.banned | {client: reason}, self._standing.suspended)
        self._rule()
        if self._stream:
            self._stream.expel(client, f"the operator has banned it{reason and f': {reason}'}")
        return {"said": f"client {client} is banned{reason and f': {reason}'}"}

    def _unban(self, request: dict[str, Any]) -> dict[str, Any]:
        if (client := self._client(request)) not in self._standing.banned:
            raise UserError(f"client {client}: is not banned")
        left = {one: reason for one, reason in self._standing.banned.items() if one != client}
        self._standing.keep(left, self._standing.suspended)
        self._rule()
        return {"said": f"client {client} is no longer banned: it may be started again"}

    def _stop(self, _: dict[str, Any]) -> dict[str, Any]:
        self._stopping = True
        when = f"after round {self._round + 1}, with a checkpoint" if self._begun else "before its first round"
        return {"said": f"the run stops {when}"}

    def _save(self, _: dict[str, Any]) -> dict[str, Any]:
        if not self._begun:
            raise UserError("the run has not begun: there is nothing to save")
        self._checkpoint = True
        return {"said": f"a checkpoint is written after round {self._round + 1}", "round": self._round + 1}

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        assert self._folder
        assert self._stream
        return {
            "folder": str(self._folder.path),
            "begun": self._begun,
            "round": self._round,
            "rounds": self._planned,
            "checkpoint": next(iter(checkpoint.rounds(self._folder.checkpoints)), 0),
            "stopping": self._stopping,
            "clients": self._stream.settings.clients,
            "connected": self._stream.connected(),
            "seen": {str(client): known for client, known in sorted(self._seen.items())},
            "suspended": {str(client): rounds for client, rounds in sorted(self._standing.suspended.items())},
            "banned": {str(client): reason for client, reason in sorted(self._standing.banned.items())},
            "refused": {str(client): reason for client, reason in sorted(self._stream.refused.items())},
        }


def _login(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
