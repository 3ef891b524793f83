"""A pool of long-lived worker processes that run clients' jobs."""

import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait

from fedshare.engine.single import Make, Single
from fedshare.errors import RunHalted
from fedshare.machine import devices
from fedshare.machine.memory import Region
from fedshare.population import Population
from fedshare.simulation.jobs import Job, Outcome, named
from fedshare.simulation.worker import GRACE, Worker, shared

ATTEMPTS = 2  # if its worker dies, a job is given to another one once


class Workers:
    """`count` processes, each with its own population, on the GPUs of `device` in turn.

    Only tensors, numbers and text are exchanged.

    A watchdog kills a worker that is late, which ends any wait for it, even in the middle of a message. If it `halts`,
    a client that raises ends the run; otherwise the error is that client's outcome.
    """

    def __init__(
        self,
        build: Callable[[], Population],
        count: int,
        timeout: float,
        halts: bool = True,
        engine: Make = Single,
        device: str = "cpu",
    ) -> None:
        self._build, self._engine, self._device = build, engine, device
        self._timeout, self._halts = timeout, halts
        self._closed = threading.Event()
        self._commons = Region()
        self._workers: list[Worker] = []
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self._workers += [self._started(number) for number in range(count)]  # start all at once ...
            for worker in self._workers:  # ... then wait for all
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _started(self, number: int) -> Worker:
        return Worker(devices.shared(self._build, self._device, number), self._engine, self._commons)

    def _watch(self) -> None:
        while not self._closed.wait(0.1):
            for worker in list(self._workers):
                worker.kill_if_late()

    @property
    def reasons(self) -> set[str]:
        """Why clients were trained by the plain engine, if any were."""
        return {reason for worker in self._workers for reason in worker.reasons}

    def run(self, groups: list[list[Job]]) -> Iterator[tuple[int, Outcome]]:
        """Yield outcomes by client, group by group as they arrive. After an error, the workers are stopped."""
        if self._closed.is_set():
            raise RuntimeError("these workers were closed, or ended with an error")
        waiting = [(jobs, 1) for jobs in reversed(groups)]
        busy: dict[Worker, tuple[list[Job], int]] = {}
        common = shared(groups, self._commons)
        for worker in self._workers:
            worker.forget()
        try:
            while waiting or busy:
                for worker in self._workers:
                    if waiting and worker not in busy:
                        busy[worker] = waiting.pop()
                        worker.send(busy[worker][0], self._timeout, common)
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    jobs, attempt = busy.pop(worker)
                    try:
                        outcomes = worker.receive(jobs, self._halts)
                    except (EOFError, OSError):
                        if worker.late:
                            limit = f"timeout={self._timeout:g} s" + " for each" * (len(jobs) > 1)
                            raise RunHalted(f"{named(jobs)}: no answer from its worker in {limit}") from None
                        if attempt == ATTEMPTS:
                            cause = f"its worker process died {attempt} times ({worker.cause()})"
                            raise RunHalted(f"{named(jobs)}: {cause}") from None
                        self._replace(worker)
                        waiting.append((jobs, attempt + 1))
                    else:
                        yield from zip((job.client for job in jobs), outcomes, strict=True)
        except BaseException:
            self.close()  # a worker still busy would send its answer to a later job
            raise

    def _replace(self, dead: Worker) -> None:
        dead.stop()
        dead.end(time.monotonic() + GRACE)
        number = self._workers.index(dead)
        self._workers[number] = fresh = self._started(number)
        fresh.wait_until_ready()

    def close(self) -> None:
        self._closed.set()
        for worker in self._workers:
            worker.stop()
        until = time.monotonic() + GRACE
        while self._workers:
            self._workers.pop().end(until)
        self._commons.close()
