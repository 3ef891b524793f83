"""A simulated client's jobs and their outcomes."""

import logging
import traceback
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from fedshare.errors import RunHalted, UserError, brief, first_line
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.population import Answer, Population
from fedshare.population.population import Place
from fedshare.state import State
from fedshare.training.engine import Engine
from fedshare.training.scratch import Scratch

log = logging.getLogger(__name__)
GROUPS = 8  # groups of a round, if the engine takes more clients at a time
Outcome = Answer | str  # an answer, or the reason why there is none


@dataclass(frozen=True)
class Job:
    purpose: Purpose
    round: int
    client: int
    download: Payload
    state: State

    def run(self, population: Population, place: Place | None = None) -> Answer:
        return population.answer(self.purpose, self.round, self.client, self.download, self.state, None, place)

    def __str__(self) -> str:
        return f"round {self.round}: client {self.client}: {self.purpose.value}"


def named(jobs: list[Job]) -> str:
    return str(jobs[0]) + (f" and {len(jobs) - 1} more" if len(jobs) > 1 else "")


def divided(jobs: list[Job], size: int, few: int) -> list[list[Job]]:
    """Return the jobs in groups of about the same size, at most `size`; several groups, if all have `few` or more.

    How they are divided affects the last bits of batched training, so it must not depend on the number of workers.
    """
    count = max(-(-len(jobs) // size), min(GROUPS, len(jobs) // few))
    return [jobs[len(jobs) * i // count : len(jobs) * (i + 1) // count] for i in range(count)]


def played(job: Job, population: Population, scratch: Scratch, engine: Engine) -> Answer:
    """Return the answer; a client that raises ends the run, with its traceback logged."""
    try:
        return job.run(population, (scratch, engine))
    except (UserError, RunHalted):
        raise
    except Exception as error:
        log.error("%s", traceback.format_exc())
        raise RunHalted(f"{job}: {raised(error)}") from error


def attempt(job: Job, population: Population, scratch: Scratch, engine: Engine) -> Outcome:
    """Return the answer, or the error in one line; after an error, the client's memory is unchanged."""
    state = deepcopy(job.state) if job.purpose is Purpose.TRAIN else job.state  # a test does not change it
    try:
        return replace(job, state=state).run(population, (scratch, engine))
    except UserError:
        raise
    except Exception as error:
        return raised(error)


def raised(error: Exception) -> str:
    """Return an error in one line, with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in last)
    return brief(f"raised {type(error).__name__}: {first_line(error)}{where}")
