"""Long-lived worker processes of one thread each, which answer for clients."""

import contextlib
import logging
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from fedshare.errors import RunHalted
from fedshare.network import Task
from fedshare.payload import Payload
from fedshare.simulation.population import Answer, Population
from fedshare.state import State, pack, unpack

START_DEADLINE = 300.0  # seconds for a worker to import torch and load its data
ATTEMPTS = 2  # a job whose worker dies is given to another one once


@dataclass(frozen=True)
class Job:
    task: Task
    round: int
    client: int
    download: Payload
    state: State

    def run(self, population: Population) -> Answer:
        return population.answer(self.task, self.round, self.client, self.download, self.state)

    def __str__(self) -> str:
        return f"round {self.round}: client {self.client}: {self.task.value}"


class Workers:
    """`count` processes, each with a population of its own. Only bytes made by `pack` go to and fro."""

    def __init__(self, build: Callable[[], Population], count: int, timeout: float) -> None:
        self._build, self._timeout = build, timeout
        self._workers = [_Worker(build) for _ in range(count)]  # all start at once ...
        try:
            for worker in self._workers:  # ... and then are waited for
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def run(self, jobs: list[Job]) -> Iterator[tuple[int, Answer]]:
        """Answers by client, in the order in which they come."""
        waiting = [(job, 1) for job in reversed(jobs)]
        busy: dict[_Worker, tuple[Job, int]] = {}
        for worker in self._workers:
            worker.forget()
        while waiting or busy:
            for worker in self._workers:
                if waiting and worker not in busy:
                    busy[worker] = waiting.pop()
                    worker.send(busy[worker][0], self._timeout)
            soonest = min(worker.deadline for worker in busy)
            ready = wait([worker.connection for worker in busy], max(0.0, soonest - time.monotonic()))
            for worker in [worker for worker in busy if worker.connection in ready or worker.late()]:
                job, attempt = busy.pop(worker)
                if worker.connection not in ready:
                    raise RunHalted(f"{job}: no answer from its worker after {self._timeout:g} s")
                try:
                    answer = worker.receive(job)
                except (EOFError, OSError):
                    if attempt == ATTEMPTS:
                        raise RunHalted(f"{job}: its worker process died {attempt} times ({worker.cause()})") from None
                    self._replace(worker)
                    waiting.append((job, attempt + 1))
                else:
                    yield job.client, answer

    def _replace(self, dead: "_Worker") -> None:
        dead.stop()
        fresh = _Worker(self._build)
        self._workers[self._workers.index(dead)] = fresh
        fresh.wait_until_ready()

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


class _Worker:
    def __init__(self, build: Callable[[], Population]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(other, build), daemon=True)
        self.process.start()
        other.close()  # so that the death of the process ends the connection
        self.deadline = time.monotonic() + START_DEADLINE
        self._downloads: dict[int, Payload] = {}  # those it has already been sent, by identity

    def wait_until_ready(self) -> None:
        try:
            if not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
                raise RunHalted(f"a worker process was not ready after {START_DEADLINE:g} s")
            reply = unpack(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise RunHalted(f"a worker process died while starting ({self.cause()})") from None
        if "error" in reply:
            raise RunHalted(f"a worker process could not start: {reply['error']}")

    def forget(self) -> None:
        self._downloads.clear()

    def send(self, job: Job, timeout: float) -> None:
        # One global model goes to many clients: it crosses to each worker once.
        tensors = job.download.tensors
        identity = hash(tuple((group, *map(id, named.values())) for group, named in tensors.items()))
        request: State = {"round": job.round, "client": job.client, "task": job.task.value, "state": job.state}
        request |= {"download": identity, "metrics": job.download.metrics, "first": not self._downloads}
        if identity not in self._downloads:
            self._downloads[identity] = job.download  # keeps the tensors alive, and so their identities apart
            request["tensors"] = tensors
        self.deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError):  # it has died; receive() will find the same
            self.connection.send_bytes(pack(request))

    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    def receive(self, job: Job) -> Answer:
        reply = unpack(self.connection.recv_bytes())
        if "error" in reply:
            raise RuntimeError(f"{job}: {reply['error']}\n{reply['trace']}")
        return Answer(Payload(reply["tensors"], reply["metrics"]), reply["state"], reply["digests"])

    def cause(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "killed; out of memory?"
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """Ask it to end; make it, if it has not after a while."""
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _serve(connection: Connection, build: Callable[[], Population]) -> None:
    """The life of a worker: build the population, then answer until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us in order
    logging.disable(logging.WARNING)  # the parent has said what there is to say about the data
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or wants no more
        try:
            population = build()
        except Exception as error:
            connection.send_bytes(pack({"error": f"{type(error).__name__}: {error}"}))
            return
        connection.send_bytes(pack({"ready": True}))
        downloads: dict[int, dict[str, Any]] = {}
        while True:
            request = unpack(connection.recv_bytes())
            if request["first"]:
                downloads.clear()
            if "tensors" in request:
                downloads[request["download"]] = request["tensors"]
            download = Payload(downloads[request["download"]], request["metrics"])
            job = Job(Task(request["task"]), request["round"], request["client"], download, request["state"])
            connection.send_bytes(_reply(job, population))


def _reply(job: Job, population: Population) -> bytes:
    try:
        answer = job.run(population)
        payload: State = {"tensors": answer.payload.tensors, "metrics": answer.payload.metrics}
        return pack(payload | {"state": answer.state, "digests": answer.digests})
    except Exception as error:
        return pack({"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()})
