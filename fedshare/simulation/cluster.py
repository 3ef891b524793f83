"""Where the workers of a simulation run: processes of this machine, or of others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fedshare.engine.single import Make
from fedshare.population import Population
from fedshare.simulation.jobs import Job, Outcome
from fedshare.simulation.workers import Workers


class Pool(Protocol):
    """Workers, each with its own population. A group whose worker dies is tried once more by another one."""

    @property
    def reasons(self) -> set[str]:
        """Why clients were trained by the plain engine, if any were."""
        ...

    def run(self, groups: list[list[Job]]) -> Iterator[tuple[int, Outcome]]:
        """Yield outcomes by client, group by group as they arrive. After an error, the workers are stopped."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Cluster(Protocol):
    """Machines that run workers. Results do not depend on which."""

    def places(self) -> int:
        """Return how many workers these machines have room for; 0: any number, on this machine only.

        Raises UserError if the machines cannot be reached.
        """
        ...

    def start(
        self,
        build: Callable[[], Population],
        population: Population,
        count: int,
        timeout: float,
        halts: bool,
        engine: Make,
    ) -> Pool:
        """Start `count` workers, whose `build` creates the same as `population`; for the rest see `Simulation`."""
        ...


@dataclass(frozen=True)
class Here:
    """This machine only."""

    def places(self) -> int:
        return 0

    def start(
        self,
        build: Callable[[], Population],
        population: Population,
        count: int,
        timeout: float,
        halts: bool,
        engine: Make,
    ) -> Pool:
        return Workers(build, count, timeout, halts, engine, str(population.scratch.device))
