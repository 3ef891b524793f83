"""Simulated clients, in this process or in workers here or on other machines, with identical results."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from fedshare.engine.single import Make, Single
from fedshare.errors import brief
from fedshare.machine.threads import one_thread
from fedshare.network import Exchange, Heard, Purpose, Quotas
from fedshare.payload import Payload
from fedshare.population import Population
from fedshare.simulation.cluster import Cluster, Here, Pool
from fedshare.simulation.jobs import Job, Outcome, attempt, divided, played
from fedshare.state import State

log = logging.getLogger(__name__)


class Held:
    """The memories of simulated clients, by id."""

    remote = False

    def __init__(self) -> None:
        self.states: dict[int, State] = {}

    def remember(self) -> dict[int, State]:
        return self.states

    def recall(self, memories: dict[int, State], round: int) -> None:
        self.states = dict(memories)

    def keep(self, round: int) -> None:
        """Nothing to do: only the last round's memories are held."""


class Simulation:
    """A `Network` of simulated clients.

    `build` creates the population, here and again in each worker process, so it must be importable (a module's function
    or a `functools.partial` of one); `population` is its result, if it was already called. `workers` is the number of
    processes, at most the number of clients; 0 means this process only. Clients' memories are held here, in `memories`:
    a worker may serve any client, and nothing is lost if it dies. `timeout` is the number of seconds allowed per client
    in a worker. A client that raises is absent from the round with ``on_error="drop"``, and ends the run with ``halt``;
    a UserError, which is the config's fault, always ends it. `engine`: `Single` trains one client after another,
    `Batched` many at once; `reasons` then has why some of the work was done by `Single`'s engine. `cluster`: whose
    machines run the workers, if not this one alone.
    """

    def __init__(
        self,
        build: Callable[[], Population],
        workers: int = 0,
        timeout: float = 3600.0,
        population: Population | None = None,
        on_error: Literal["halt", "drop"] = "halt",
        engine: Make = Single,
        cluster: Cluster | None = None,
    ) -> None:
        with one_thread():
            self.population = population or build()
        self.memories = Held()
        self._sizes = self.population.sizes()
        self._ids = list(range(len(self._sizes)))
        self._build, self._timeout, self._halts = build, timeout, on_error == "halt"
        self._engine = engine
        self.reasons: set[str] = set()
        self._playing = engine(self.population.scratch, self.population.training, self.population.task)
        self.processes = min(workers, len(self._sizes))
        self._cluster = cluster or Here()
        self._workers: Pool | None = None  # started at the first exchange

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._workers:
            self._workers.close()

    def client_ids(self) -> list[int]:
        return self._ids

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        # Largest clients first, so that no worker has to finish one of them alone at the end.
        order = sorted(downloads, key=lambda client: -self._sizes[client])
        states = self.memories.states
        jobs = [Job(purpose, round, client, downloads[client], states.get(client, {})) for client in order]
        groups = divided(jobs, self._playing.size, self._playing.few)
        if self.processes and not self._workers:
            self._workers = self._cluster.start(
                self._build, self.population, self.processes, self._timeout, self._halts, self._engine
            )
        heard = heard or (lambda *_: None)
        outcomes = dict[int, Outcome]()
        heard(purpose, round, 0, len(jobs))
        for client, outcome in self._workers.run(groups) if self._workers else self._here(groups):
            outcomes[client] = outcome
            heard(purpose, round, len(outcomes), len(jobs))
        self._report()
        absent = {client: why for client, why in sorted(outcomes.items()) if isinstance(why, str)}
        answers = {client: answer for client, answer in sorted(outcomes.items()) if not isinstance(answer, str)}
        payloads = {client: answer.payload for client, answer in answers.items()}
        if purpose is not Purpose.TRAIN:
            return Exchange(payloads, absent)
        self.memories.states |= {client: answer.state for client, answer in answers.items()}
        return Exchange(payloads, absent, {client: answer.digests for client, answer in answers.items()})

    def _report(self) -> None:
        """Log why clients were trained by the plain engine, once for each reason."""
        found = self._playing.reasons | (self._workers.reasons if self._workers else set())
        for reason in sorted(found - self.reasons):
            log.warning("engine=batched: some of the work is left to the plain engine: %s", brief(reason))
        self.reasons |= found

    def _here(self, groups: list[list[Job]]) -> Iterator[tuple[int, Outcome]]:
        play = played if self._halts else attempt
        with one_thread():
            for jobs in groups:
                outcomes = self._playing.play([partial(play, job, self.population) for job in jobs])
                yield from zip((job.client for job in jobs), outcomes, strict=True)
