"""A worker process as the simulation sees it: `serving` is what it runs."""

import contextlib
import json
import logging
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any

from fedshare.engine.single import Make
from fedshare.errors import RunHalted, UserError
from fedshare.machine.memory import Region
from fedshare.payload import Payload
from fedshare.population import Answer, Population
from fedshare.simulation.jobs import Job, Outcome
from fedshare.simulation.messages import Header, Writer, sealed, value
from fedshare.simulation.serving import End, serve
from fedshare.tensors import Tensors

log = logging.getLogger(__name__)
START_DEADLINE = 300.0  # seconds for a worker to import torch and load its data
GRACE = 5.0  # seconds for workers to exit by themselves


class Worker:
    """Sends jobs to a process of its own and receives their outcomes.

    `commons` is the memory of the tensors that several workers are sent.
    """

    def __init__(self, build: Callable[[], Population], engine: Make, commons: Region) -> None:
        if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
            multiprocessing.set_start_method("spawn", force=True)  # joblib may set a method that no child knows
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._inbox, self._outbox = Region(), Region()  # as the process sees them
        end = End(other, commons, self._inbox, self._outbox)
        self.process: SpawnProcess = context.Process(target=serve, args=(end, build, engine), daemon=True)
        with ctrl_c_ignored():  # the child inherits this: this process handles Ctrl-C and stops the others in order
            self.process.start()
        other.close()  # so that the connection ends when the process dies
        self.late = False
        self.reasons: set[str] = set()  # why clients were trained by the plain engine
        self._deadline = time.monotonic() + START_DEADLINE
        self._informed = False  # whether it has been told what is in `commons`

    def kill_if_late(self) -> None:
        if time.monotonic() > self._deadline and not self.late:
            self.late = True
            self.process.kill()

    def wait_until_ready(self) -> None:
        try:
            reply = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            if self.late:
                raise RunHalted(f"a worker process was not ready after {START_DEADLINE:g} s") from None
            hint = "a script that uses workers needs `if __name__ == '__main__':`"
            raise RunHalted(f"a worker process died while starting ({self.cause()}); {hint}") from None
        self._deadline = math.inf
        if "error" in reply:
            raise RunHalted(f"a worker process could not start: {reply['error']}")

    def forget(self) -> None:
        """Expect other tensors in `commons` from now on."""
        self._informed = False

    def send(self, jobs: list[Job], timeout: float, shared: "Shared") -> None:
        self._deadline = time.monotonic() + timeout * len(jobs)
        message = Writer(self._inbox, shared.numbers)
        groups: dict[int, tuple[int, Tensors]] = {}  # by id: the global model is named once, not for each client
        requests = []
        for job in jobs:
            named = {
                name: groups.setdefault(id(group), (len(groups), group))[0]
                for name, group in job.download.tensors.items()
            }
            requests.append([job.purpose.value, job.round, job.client, named, job.download.metrics, job.state])
        header = message.header(message.encoded([[group for _, group in groups.values()], requests]))
        parts = {"jobs": header} if self._informed else {"jobs": header, "shared": shared.header}
        self._informed = True
        with contextlib.suppress(OSError):  # it has died; receive() will report that
            self.connection.send_bytes(sealed(parts))

    def receive(self, jobs: list[Job], halts: bool) -> list[Outcome]:
        data = self.connection.recv_bytes()
        self._deadline = math.inf
        replies, reasons = value(self._outbox, json.loads(data), [])
        self.reasons.update(reasons)
        return [outcome(job, reply, halts) for job, reply in zip(jobs, replies, strict=True)]

    def cause(self) -> str:
        return death(self.process)

    def stop(self) -> None:
        """Ask the process to end."""
        self._deadline = math.inf
        self.connection.close()

    def end(self, until: float) -> None:
        """Wait for the process to end; kill it if it has not by then."""
        self.process.join(max(0.0, until - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self._inbox.close()
        self._outbox.close()


@dataclass(frozen=True)
class Shared:
    """Tensors that several workers are sent."""

    numbers: Mapping[int, int]  # by id: by which messages name them
    header: Header


def shared(groups: list[list[Job]], commons: Region) -> Shared:
    """Copy the tensors that more than one of the groups needs into `commons`, which no worker may be reading."""
    message = Writer(commons)
    first: dict[int, int] = {}  # by id: the first group that needs it
    for place, jobs in enumerate(groups):
        needed = {id(group): group for job in jobs for group in job.download.tensors.values()}
        for tensor in (tensor for group in needed.values() for tensor in group.values()):
            if first.setdefault(id(tensor), place) != place:
                message.number(tensor)
    return Shared(message.numbers, message.header())


def outcome(job: Job, reply: dict[str, Any], halts: bool) -> Outcome:
    if "wrong" in reply:
        raise UserError(reply["wrong"])
    if "error" in reply and not halts:
        return str(reply["error"])
    if "error" in reply:
        log.error("%s", reply["trace"])
        raise RunHalted(f"{job}: {reply['error']}")
    return Answer(Payload(reply["tensors"], reply["metrics"]), reply["state"], reply["digests"])


def death(process: SpawnProcess) -> str:
    """Return how a terminated process ended."""
    process.join(GRACE)
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "killed; out of memory?"
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


@contextlib.contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals can be set only there
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
