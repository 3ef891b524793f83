"""What is asked of a client, wherever it is simulated, and what comes of it."""

import logging
import traceback
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from fedshare.errors import RunHalted, UserError, brief, first_line
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.population import Answer, Population
from fedshare.state import State

log = logging.getLogger(__name__)
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
