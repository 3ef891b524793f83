"""Long-lived worker processes of one thread each, which answer for clients."""

import contextlib
import logging
import math
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from fedshare.errors import RunHalted, UserError, brief, first_line
from fedshare.network import Purpose
from fedshare.payload import Payload, same_tensors
from fedshare.population import Answer, Population
from fedshare.state import State, pack, unpack
from fedshare.tensors import Tensors

log = logging.getLogger(__name__)
START_DEADLINE = 300.0  # seconds for a worker to import torch and load its data
GRACE = 5.0  # seconds for workers to end by themselves
ATTEMPTS = 2  # a job whose worker dies is given to another one once


Outcome = Answer | str  # or why there is no answer


@dataclass(frozen=True)
class Job:
    purpose: Purpose
    round: int
    client: int
    download: Payload
    state: State

    def run(self, population: Population) -> Answer:
        return population.answer(self.purpose, self.round, self.client, self.download, self.state)

    def __str__(self) -> str:
        return f"round {self.round}: client {self.client}: {self.purpose.value}"


def played(job: Job, population: Population) -> Answer:
    """The answer; a client that raises ends the run, and its traceback is logged."""
    try:
        return job.run(population)
    except (UserError, RunHalted):
        raise
    except Exception as error:
        log.error("%s", traceback.format_exc())
        raise RunHalted(f"{job}: {raised(error)}") from error


def attempt(job: Job, population: Population) -> Outcome:
    """The answer, or in a line what was raised. What the client remembers is then as it was before."""
    state = deepcopy(job.state) if job.purpose is Purpose.TRAIN else job.state  # a test changes nothing in it
    try:
        return replace(job, state=state).run(population)
    except UserError:
        raise
    except Exception as error:
        return raised(error)


def raised(error: Exception) -> str:
    """An error in a line, with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in last)
    return brief(f"raised {type(error).__name__}: {first_line(error)}{where}")


class Workers:
    """`count` processes, each with a population of its own. Only bytes made by `pack` go to and fro.

    A watchdog kills a worker that is late, which ends every wait for it, also one in the middle of a message. Where it
    `halts`, a client that raises ends the run; else that is its outcome.
    """

    def __init__(self, build: Callable[[], Population], count: int, timeout: float, halts: bool = True) -> None:
        self._build, self._timeout, self._halts = build, timeout, halts
        self._closed = threading.Event()
        self._workers: list[_Worker] = []
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self._workers += [_Worker(build) for _ in range(count)]  # all start at once ...
            for worker in self._workers:  # ... and then are waited for
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _watch(self) -> None:
        while not self._closed.wait(0.1):
            for worker in list(self._workers):
                worker.kill_if_late()

    def run(self, jobs: list[Job]) -> Iterator[tuple[int, Outcome]]:
        """Outcomes by client, in the order in which they come. After an error, the workers are gone."""
        if self._closed.is_set():
            raise RuntimeError("these workers were closed, or ended with an error")
        waiting = [(job, 1) for job in reversed(jobs)]
        busy: dict[_Worker, tuple[Job, int]] = {}
        for worker in self._workers:
            worker.forget()
        try:
            while waiting or busy:
                for worker in self._workers:
                    if waiting and worker not in busy:
                        busy[worker] = waiting.pop()
                        worker.send(busy[worker][0], self._timeout)
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    job, attempt = busy.pop(worker)
                    try:
                        outcome = worker.receive(job, self._halts)
                    except (EOFError, OSError):
                        if worker.late:
                            raise RunHalted(
                                f"{job}: no answer from its worker in timeout={self._timeout:g} s"
                            ) from None
                        if attempt == ATTEMPTS:
                            cause = f"its worker process died {attempt} times ({worker.cause()})"
                            raise RunHalted(f"{job}: {cause}") from None
                        self._replace(worker)
                        waiting.append((job, attempt + 1))
                    else:
                        yield job.client, outcome
        except BaseException:
            self.close()  # a worker still busy would give its answer to a later question
            raise

    def _replace(self, dead: "_Worker") -> None:
        dead.stop()
        dead.end(time.monotonic() + GRACE)
        fresh = _Worker(self._build)
        self._workers[self._workers.index(dead)] = fresh
        fresh.wait_until_ready()

    def close(self) -> None:
        self._closed.set()
        for worker in self._workers:
            worker.stop()
        until = time.monotonic() + GRACE
        while self._workers:
            self._workers.pop().end(until)


class _Worker:
    def __init__(self, build: Callable[[], Population]) -> None:
        if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
            multiprocessing.set_start_method("spawn", force=True)  # joblib's own method, which no child would know
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(other, build), daemon=True)
        with ctrl_c_ignored():  # the child takes it over: this process hears Ctrl-C and ends the others in order
            self.process.start()
        other.close()  # so that the death of the process ends the connection
        self.late = False
        self._deadline = time.monotonic() + START_DEADLINE
        self._download: Payload | None = None  # the last one it was sent

    def kill_if_late(self) -> None:
        if time.monotonic() > self._deadline and not self.late:
            self.late = True
            self.process.kill()

    def wait_until_ready(self) -> None:
        try:
            reply = unpack(self.connection.recv_bytes())
        except (EOFError, OSError):
            if self.late:
                raise RunHalted(f"a worker process was not ready after {START_DEADLINE:g} s") from None
            hint = "a script that uses workers needs `if __name__ == '__main__':`"
            raise RunHalted(f"a worker process died while starting ({self.cause()}); {hint}") from None
        self._deadline = math.inf
        if "error" in reply:
            raise RunHalted(f"a worker process could not start: {reply['error']}")

    def forget(self) -> None:
        self._download = None

    def send(self, job: Job, timeout: float) -> None:
        request: State = {"round": job.round, "client": job.client, "purpose": job.purpose.value, "state": job.state}
        request["metrics"] = job.download.metrics
        # One global model goes to many clients: it crosses to each worker once.
        if self._download is None or not same_tensors(self._download, job.download):
            self._download = job.download
            request["tensors"] = job.download.tensors
        self._deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError):  # it has died; receive() will find the same
            self.connection.send_bytes(pack(request))

    def receive(self, job: Job, halts: bool) -> Outcome:
        data = self.connection.recv_bytes()
        self._deadline = math.inf
        reply = unpack(data)
        if "wrong" in reply:
            raise UserError(reply["wrong"])
        if "error" in reply and not halts:
            return str(reply["error"])
        if "error" in reply:
            log.error("%s", reply["trace"])
            raise RunHalted(f"{job}: {reply['error']}")
        return Answer(Payload(reply["tensors"], reply["metrics"]), reply["state"], reply["digests"])

    def cause(self) -> str:
        return death(self.process)

    def stop(self) -> None:
        """Ask it to end."""
        self._deadline = math.inf
        self.connection.close()

    def end(self, until: float) -> None:
        """See it end; make it, if it has not by then."""
        self.process.join(max(0.0, until - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def death(process: SpawnProcess) -> str:
    """How it ended, having ended."""
    process.join(GRACE)
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "killed; out of memory?"
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


@contextlib.contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may it be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, build: Callable[[], Population]) -> None:
    """The life of a worker: build the population, then answer until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # the parent has said what there is to say about the data
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or wants no more
        try:
            population = build()
        except Exception as error:
            connection.send_bytes(pack({"error": f"{type(error).__name__}: {error}"}))
            return
        connection.send_bytes(pack({"ready": True}))
        tensors: dict[str, Tensors] = {}
        while True:
            request = unpack(connection.recv_bytes())
            tensors = request.get("tensors", tensors)
            download = Payload(tensors, request["metrics"])
            job = Job(Purpose(request["purpose"]), request["round"], request["client"], download, request["state"])
            connection.send_bytes(_reply(job, population))


def _reply(job: Job, population: Population) -> bytes:
    try:
        answer = job.run(population)
        payload: State = {"tensors": answer.payload.tensors, "metrics": answer.payload.metrics}
        return pack(payload | {"state": answer.state, "digests": answer.digests})
    except UserError as error:
        return pack({"wrong": str(error)})
    except Exception as error:
        return pack({"error": raised(error), "trace": traceback.format_exc()})
