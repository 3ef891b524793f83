"""Workers on the machines of a Ray cluster, as its actors. Only this file uses Ray.

Ray pickles the actors' class and `build`, as every new process needs them. All else that is exchanged are bytes made by
`pack`, which Ray leaves as they are.
"""

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fedshare.engine.single import Make
from fedshare.errors import RunHalted, UserError, brief, first_line
from fedshare.machine.extras import importing
from fedshare.payload import Payload, same_tensors
from fedshare.population import Population
from fedshare.simulation.jobs import Job, Outcome, named
from fedshare.simulation.remote import Remote, traits
from fedshare.simulation.worker import START_DEADLINE, outcome
from fedshare.simulation.workers import ATTEMPTS
from fedshare.state import State, pack, unpack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ray:
    """A cluster that this machine is a node of."""

    address: str = "auto"  # HOST:PORT of its head; auto: of the cluster that this machine is a node of
    gpus: float = 0.0  # for each worker; below 1: several workers share a GPU
    deadline: float = 60.0  # seconds to reach it

    def __post_init__(self) -> None:
        if self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise UserError(f"gpus={self.gpus:g}: must be from 0 to 1, or a whole number")
        if not self.deadline > 0:
            raise UserError(f"deadline={self.deadline:g}: must be above 0 seconds")
        if not re.fullmatch(r"auto|[^:/]+:\d+", self.address):
            raise UserError(f"address={self.address}: must be auto or HOST:PORT")
        with importing("ray", "cluster=ray"):
            import ray  # noqa: F401

    def places(self) -> int:
        """Return how many workers the whole cluster has room for. Raises UserError if it cannot be reached."""
        found = self._connected().cluster_resources()
        cores, gpus = found.get("CPU", 0), found.get("GPU", 0)
        if not (places := int(min(cores, gpus / self.gpus) if self.gpus else cores)):
            raise UserError(f"cluster=ray, address={self.address}, gpus={self.gpus:g}: no room for a worker")
        return places

    def start(
        self,
        build: Callable[[], Population],
        population: Population,
        count: int,
        timeout: float,
        halts: bool,
        engine: Make,
    ) -> "Actors":
        ray = self._connected()
        made = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0, scheduling_strategy="SPREAD")(Placed)
        begin = (build, engine, ray.put(pack(population.drawn())))
        return Actors(ray, made, begin, traits(population), count, timeout, halts)

    def _connected(self) -> Any:
        """Return the library, connected to the cluster."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise Ray warns about its next version
        logging.getLogger("ray").setLevel(logging.ERROR)  # what matters is reported in one line
        import ray

        raised: list[Exception] = []

        def connect() -> None:
            try:
                if self.address != "auto":  # where nobody listens, Ray would try for minutes
                    host, _, port = self.address.rpartition(":")
                    socket.create_connection((host, int(port)), self.deadline).close()
                ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                raised.append(error)

        if not ray.is_initialized():
            # Not in the main thread, where Ray has no deadline, and replaces Python's handler of SIGTERM.
            thread = threading.Thread(target=connect, daemon=True)
            thread.start()
            thread.join(self.deadline)
            if thread.is_alive() or raised:
                why = " ".join(str(raised[0]).split()) if raised else f"no answer in deadline={self.deadline:g} s"
                raise UserError(f"cluster=ray, address={self.address}: cannot be reached: {brief(why)}")
            if threading.current_thread() is threading.main_thread():
                # Ray's own handler, below Python's, would abort this process 3 seconds later.
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        return ray


class Placed(Remote):
    """A worker that knows where it is."""

    def __init__(self, folders: list[str]) -> None:
        import ray

        super().__init__(folders, ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())


@dataclass(eq=False)
class Actor:
    """An actor as the run's process sees it."""

    handle: Any
    answer: Any  # a reference to the bytes that it will return; None: it is idle
    until: float  # when it has to have answered
    jobs: list[Job] | None = None  # what it runs; None while it starts
    attempt: int = 0  # at these jobs
    node: str = ""  # where it is, once it has started


class Actors:
    """A `Pool` of actors, each of which works as soon as the cluster has started it.

    The run goes on with fewer of them if a machine is lost and the others have no room for more.
    """

    def __init__(
        self, ray: Any, made: Any, begin: tuple[Any, ...], traits: State, count: int, timeout: float, halts: bool
    ) -> None:
        self.reasons: set[str] = set()
        self._ray, self._made, self._begin, self._traits = ray, made, begin, traits
        self._timeout, self._halts = timeout, halts
        self._common, self._reference = Payload(), ray.put(pack({}))
        self._actors = [self._new() for _ in range(count)]

    def _new(self) -> Actor:
        handle = self._made.remote(sys.path)
        return Actor(handle, handle.begin.remote(*self._begin), time.monotonic() + START_DEADLINE)

    def run(self, groups: list[list[Job]]) -> Iterator[tuple[int, Outcome]]:
        """Yield outcomes by client, group by group as they arrive. After an error, the actors are stopped."""
        if not self._actors:
            raise RuntimeError("these workers were closed, or ended with an error")
        waiting = [(jobs, 1) for jobs in reversed(groups)]
        try:
            if groups:
                self._share(groups[0][0].download)
            while waiting or any(actor.jobs for actor in self._actors):
                for actor in self._actors:
                    if waiting and actor.answer is None:
                        self._send(actor, *waiting.pop())
                actor = self._next()
                jobs, attempt = actor.jobs, actor.attempt
                try:
                    data = self._ray.get(actor.answer, timeout=max(0.0, actor.until - time.monotonic()))
                except self._ray.exceptions.RayError as error:
                    self._lose(actor, error)
                    if jobs:
                        waiting.append((jobs, attempt + 1))
                    continue
                actor.answer = actor.jobs = None
                if jobs is None:
                    self._welcome(actor, unpack(data))
                else:
                    yield from self._outcomes(jobs, unpack(data))
        except BaseException as error:
            self.close()  # an actor still busy would send its answer to a later job
            if isinstance(error, self._ray.exceptions.RayError):
                raise RunHalted(f"cluster=ray: {brief(first_line(error))}") from error
            raise

    def _share(self, download: Payload) -> None:
        """Put a download where all actors find it: one global model goes to each machine once."""
        if not same_tensors(self._common, download):
            self._common, self._reference = download, self._ray.put(pack(download.tensors))

    def _send(self, actor: Actor, jobs: list[Job], attempt: int) -> None:
        actor.jobs, actor.attempt = jobs, attempt
        actor.until = time.monotonic() + self._timeout * len(jobs)
        request = pack({"jobs": [self._request(job) for job in jobs]})
        actor.answer = actor.handle.play.remote(request, self._reference)

    def _request(self, job: Job) -> State:
        request: State = {"round": job.round, "client": job.client, "purpose": job.purpose.value, "state": job.state}
        request["metrics"] = job.download.metrics
        if not same_tensors(self._common, job.download):
            request["tensors"] = job.download.tensors
        return request

    def _next(self) -> Actor:
        """Wait until an actor has answered, has died or is late, and return it."""
        pending = [actor for actor in self._actors if actor.answer is not None]
        first = min(pending, key=lambda actor: actor.until)
        answers = [actor.answer for actor in pending]
        ready, _ = self._ray.wait(answers, timeout=max(0.0, first.until - time.monotonic()))
        return pending[answers.index(ready[0])] if ready else first

    def _welcome(self, actor: Actor, reply: State) -> None:
        actor.node = reply["node"]
        if "error" in reply:
            raise RunHalted(f"a worker on {reply['host']} could not start: {reply['error']}")
        for name, value in reply["traits"].items():
            if value != (ours := self._traits[name]):
                raise RunHalted(f"{reply['host']} has another {name}: {value[:16]}, not {ours[:16]}")

    def _outcomes(self, jobs: list[Job], answer: State) -> Iterator[tuple[int, Outcome]]:
        self.reasons.update(answer["reasons"])
        for job, one in zip(jobs, answer["replies"], strict=True):
            yield job.client, outcome(job, one, self._halts)

    def _lose(self, actor: Actor, error: Exception) -> None:
        """Replace an actor that has died. Raises RunHalted if the run cannot go on."""
        self._ray.kill(actor.handle)
        self._actors.remove(actor)
        exceptions, why = self._ray.exceptions, cause(error)
        late = isinstance(error, exceptions.GetTimeoutError)
        if actor.jobs is None:
            if isinstance(error, exceptions.RayTaskError) or getattr(error, "actor_init_failed", False):
                raise RunHalted(f"a worker could not start: {why}")
            why = f"not ready after {START_DEADLINE:g} s: are all processors in use?" if late else why
            if not self._actors:
                raise RunHalted(f"cluster=ray: no worker is left: {why}")
            log.warning("cluster=ray: going on with %d workers: %s", len(self._actors), why)
            return
        if late:
            limit = f"timeout={self._timeout:g} s" + " for each" * (len(actor.jobs) > 1)
            raise RunHalted(f"{named(actor.jobs)}: no answer from its worker in {limit}")
        if actor.attempt == ATTEMPTS:
            raise RunHalted(f"{named(actor.jobs)}: its worker died {actor.attempt} times ({why})")
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        gone = [other for other in self._actors if other.node and other.node not in alive and not other.jobs]
        self._actors = [other for other in self._actors if other not in gone]  # idle ones, of which no answer tells it
        self._actors += [self._new() for _ in (actor, *gone)]

    def close(self) -> None:
        while self._actors:
            self._ray.kill(self._actors.pop().handle)


def cause(error: Exception) -> str:
    """Return, in one line, where an actor was and why it died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "actor_id:" not in str(error):
        return brief(lines[-1] if lines else type(error).__name__)
    return brief("".join(line[4:] + ": " for line in lines if line.startswith("ip: ")) + lines[-1])
