"""The operator interface of a running server: commands over a local socket, and the audit log."""

import pwd
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedshare.errors import NAME, RunHalted, UserError, brief, first_line
from fedshare.experiments.hosts import orders
from fedshare.experiments.hosts.desk_commands import Commands
from fedshare.experiments.tracking import Note, NoTracker, Watcher, _note
from fedshare.report.clock import say
from fedshare.runs import RunFolder
from fedshare.runs import audit as audits
from fedshare.runs.audit import Audit
from fedshare.transport import control
from fedshare.transport.stream.server import StreamServer


class Desk:
    """Orders for a run, and a Watcher that records its events in the audit log.

    Call `serve` first. The log is in the run's folder as soon as it exists, or at `audit`; without a run of ours
    (`opens` is never called) there is a log only with `audit`, and no socket. `other` receives the Watcher's calls too.
    """

    def __init__(self, audit: str | None = None, other: Watcher | None = None) -> None:
        self.stopped = False  # at the operator's request
        self._audit, self._asked = Audit(), audit
        self._other = other
        self._run = Commands()
        self._control: control.Control | None = None
        self._made = False  # created the folder, for the socket
        self._callers: dict[int, dict[str, str | int]] = {}  # each client's last address and certificate, for the log
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
        self._audit.note("ended", round=self._run.round, how=how or brief(first_line(error or RunHalted("")), 400))
        try:
            self._audit.close()
        except OSError:
            if kind is None:
                raise
        finally:
            if self._made and self._run.folder:
                with suppress(OSError):  # only if it is empty
                    self._run.folder.path.rmdir()

    def serve(self, stream: StreamServer, folder: str = "") -> None:
        """Attach to `stream` before it starts: record its events, and apply the bans and suspensions in `folder`."""
        self._run.stream = stream
        if folder:
            self._run.standing.open(Path(folder) / orders.NAME)
            self._run.rule()
        stream.journal.record = self._record
        if self._other:
            stream.journal.refusal = self._other.refused
        self._audit.note("listening", address=stream.address, version=stream.settings.version)

    def _record(self, event: str, about: str, /, **what: str | int) -> None:
        client = what.get("client")
        if isinstance(client, int) and event != "refused":
            known = {"address": what["address"]} | ({"gone": what["reason"]} if event == "gone" else {})
            self._run.seen[client] = known
            self._callers[client] = {name: value for name, value in what.items() if name != "reason"}
        self._audit.note(event, about, **what)

    def _about(self, client: int) -> dict[str, str | int]:
        """The client's number, and its last known address and certificate."""
        return self._callers.get(client, {"client": client})

    # Orders.

    def opens(self, folder: Path) -> None:
        self._run.folder = RunFolder(folder)
        self._run.standing.open(folder / orders.NAME)
        self._run.rule()
        if (folder / audits.NAME).exists():  # an altered log is refused before anything is done
            self._open()
        try:
            if not folder.exists():
                folder.mkdir(parents=True)
                self._made = True
            self._control = control.Control(folder / control.NAME, self._answer)
        except OSError as error:  # a file system without sockets, or a full one: the run itself reports that better
            say(f"no commands of `fedshare admin` are taken: {folder / control.NAME}: {error.strerror or error}")

    def ready(self) -> None:
        self._audit.check()
        with self._lock:  # held by a command until it is in the log
            self.stopped = self._run.stopping
        if self.stopped:
            after = f"after round {self._run.round}" if self._run.round else "before its first round"
            raise RunHalted(f"stopped by the operator {after}")

    @property
    def goes_on(self) -> str:
        """How to resume, for the operator who has stopped the run."""
        return (
            f"; the same command with --resume {self._run.folder.path} goes on"
            if self._run.folder and self._run.round
            else ""
        )

    def due(self) -> bool:
        wanted, self._run.checkpoint = self._run.checkpoint, False
        return wanted

    # A Watcher.

    def start(self, config: dict[str, Any], name: str, group: str | None, folder: Path, note: Note = _note) -> None:
        rows = RunFolder(folder).rows()
        self._run.round, self._run.planned, self._run.begun = rows[-1]["round"] if rows else 0, config["rounds"], True
        self._open()
        event = "resumed" if rows else "began"
        self._audit.note(
            event, round=self._run.round, name=brief(name, NAME), folder=str(folder), rounds=self._run.planned
        )
        self._audit.flush()
        (self._other or NoTracker()).start(config, name, group, folder, note)

    def log(self, row: dict[str, Any]) -> None:
        """Raises OSError if the audit log cannot be written."""
        with self._lock:
            self._run.round = row["round"]
            self._audit.note("round", round=self._run.round, digest=row["digest"])
            for client in self._run.standing.after_round(row.get("absent", ())):
                self._audit.note("resumed client", **self._about(client), reason="its rounds are over")
                say(f"client {client} takes part again: the rounds for which it was suspended are over")
            self._run.rule()
        self._audit.flush()
        (self._other or NoTracker()).log(row)

    def finish(self, completed: bool = True) -> None:
        (self._other or NoTracker()).finish(completed)

    def refused(self, reason: str, client: int | None = None) -> None:
        """Refused by the run, after the stream has admitted it."""
        if client is None:
            self._audit.note("refused", "the run", reason=reason)
        else:
            self._audit.note("refused", f"client {client}", **self._about(client), reason=reason)
        if self._other:
            self._other.refused(reason, client)

    # Commands.

    def _open(self) -> None:
        if self._audit.path is None and self._run.folder:
            self._audit.open(self._run.folder.path / audits.NAME)

    def _answer(self, request: dict[str, Any], user: int) -> dict[str, Any]:
        command = request.get("command")
        obeyed = self._run.named(command)
        with self._lock:
            if command == "status":
                return obeyed(request)
            try:
                answer = obeyed(request)
            except OSError as error:
                raise UserError(f"{error.filename}: {error.strerror}: nothing was done") from error
            self._open()  # also before the run has begun, but not for a refused command
            said = {name: value for name, value in request.items() if name in ("rounds", "reason")}
            said |= self._about(request["client"]) if "client" in request else {}
            self._audit.note("operator", command=str(command), user=user, login=_login(user), **said)
            say(f"the operator: {answer['said']}")
        self._audit.flush()
        return answer


def _login(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
