"""A single-threaded worker process, both ends of its connection: only bytes made by `pack` are exchanged."""

import contextlib
import logging
import math
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from fedshare.engine.single import Make
from fedshare.errors import RunHalted, UserError
from fedshare.network import Purpose
from fedshare.payload import Payload, same_tensors
from fedshare.population import Answer, Population
from fedshare.simulation.jobs import Job, Outcome, raised
from fedshare.state import State, pack, unpack
from fedshare.tensors import Tensors
from fedshare.training.engine import Engine
from fedshare.training.scratch import Scratch

log = logging.getLogger(__name__)
START_DEADLINE = 300.0  # seconds for a worker to import torch and load its data
GRACE = 5.0  # seconds for workers to exit by themselves


class Worker:
    def __init__(self, build: Callable[[], Population], engine: Make) -> None:
        if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
            multiprocessing.set_start_method("spawn", force=True)  # joblib may set a method that no child knows
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(other, build, engine), daemon=True)
        with ctrl_c_ignored():  # the child inherits this: this process handles Ctrl-C and stops the others in order
            self.process.start()
        other.close()  # so that the connection ends when the process dies
        self.late = False
        self.reasons: set[str] = set()  # why clients were trained by the plain engine
        self._deadline = time.monotonic() + START_DEADLINE
        self._download: Payload | None = None  # the last one sent to it

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

    def send(self, jobs: list[Job], timeout: float) -> None:
        self._deadline = time.monotonic() + timeout * len(jobs)
        with contextlib.suppress(OSError):  # it has died; receive() will report that
            self.connection.send_bytes(pack({"jobs": [self._request(job) for job in jobs]}))

    def _request(self, job: Job) -> State:
        request: State = {"round": job.round, "client": job.client, "purpose": job.purpose.value, "state": job.state}
        request["metrics"] = job.download.metrics
        # One global model goes to many clients: it is sent to each worker once.
        if self._download is None or not same_tensors(self._download, job.download):
            self._download = job.download
            request["tensors"] = job.download.tensors
        return request

    def receive(self, jobs: list[Job], halts: bool) -> list[Outcome]:
        data = self.connection.recv_bytes()
        self._deadline = math.inf
        answer = unpack(data)
        self.reasons.update(answer["reasons"])
        return [outcome(job, reply, halts) for job, reply in zip(jobs, answer["replies"], strict=True)]

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


def outcome(job: Job, reply: State, halts: bool) -> Outcome:
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


def _serve(connection: Connection, build: Callable[[], Population], engine: Make) -> None:
    """Run a worker: build the population, then answer until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # the parent has already logged the data's warnings
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or has closed the connection
        try:
            population = build()
            playing = engine(population.scratch, population.training, population.task)
        except Exception as error:
            connection.send_bytes(pack({"error": f"{type(error).__name__}: {error}"}))
            return
        connection.send_bytes(pack({"ready": True}))
        tensors: dict[str, Tensors] = {}
        while True:
            bodies = []
            for request in unpack(connection.recv_bytes())["jobs"]:
                tensors = request.get("tensors", tensors)
                download = Payload(tensors, request["metrics"])
                job = Job(Purpose(request["purpose"]), request["round"], request["client"], download, request["state"])
                bodies.append(partial(reply, job, population))
            connection.send_bytes(pack({"replies": playing.play(bodies), "reasons": sorted(playing.reasons)}))


def reply(job: Job, population: Population, scratch: Scratch, engine: Engine) -> State:
    try:
        answer = job.run(population, (scratch, engine))
        payload: State = {"tensors": answer.payload.tensors, "metrics": answer.payload.metrics}
        return payload | {"state": answer.state, "digests": answer.digests}
    except UserError as error:
        return {"wrong": str(error)}
    except Exception as error:
        return {"error": raised(error), "trace": traceback.format_exc()}
