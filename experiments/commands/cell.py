"""One cell of a matrix: a run of which only the result is kept, and the file that stores it."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import fedshare
from fedshare.errors import RunHalted, first_line
from fedshare.experiments.config import build
from fedshare.experiments.running.adversaries import played
from fedshare.machine.files import write_atomically
from fedshare.machine.threads import one_thread
from fedshare.report.robustness import detection
from fedshare.simulation import Simulation, choice

KEPT = ("seconds", "rounds", "clients", "adversaries", "halted", "bytes_up", "bytes_down", "detection", "row")
Result = dict[str, Any]  # with the keys `KEPT`


@dataclass(frozen=True)
class Cell:
    attack: str
    defence: str
    partition: str
    seed: int
    config: dict[str, Any]  # resolved, without keys that have no effect

    def __str__(self) -> str:
        return f"{self.attack} / {self.defence} / {self.partition} / seed {self.seed}"

    @property
    def file(self) -> str:
        """File name, equal for equal configs whatever their names."""
        text = json.dumps(self.config, sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def write(self, folder: Path, result: Result) -> None:
        names = {"attack": self.attack, "defence": self.defence, "partition": self.partition, "seed": self.seed}
        write_atomically(
            folder / self.file,
            json.dumps({**names, "fedshare": fedshare.__version__, **result, "config": self.config}) + "\n",
        )

    def read(self, folder: Path) -> Result | None:
        """Return the stored result, if any, with the ``fedshare`` that made it. Raises ValueError if damaged."""
        try:
            kept = json.loads((folder / self.file).read_text())
        except FileNotFoundError:
            return None
        if not isinstance(kept, dict) or not kept.keys() >= set(KEPT) or kept.get("config") != self.config:
            raise ValueError("it is not of this cell")
        return {"fedshare": kept.get("fedshare"), **{key: kept[key] for key in KEPT}}


def play(config: dict[str, Any], tell: Callable[[int], None]) -> Result:
    """Play all rounds in this process; `tell` is called with each. Halted runs also have a result."""
    began, whole = time.perf_counter(), DictConfig(OmegaConf.create(config))
    sent, row, halted = {"bytes_up": 0, "bytes_down": 0}, dict[str, Any](), None
    engine = choice.ENGINES[whole.get("engine", "plain")]
    with Simulation(partial(build.population_of, whole), engine=engine) as network:
        population = network.population
        with one_thread():
            state = population.strategy.init(population.scratch.initial, population.clients)
        try:
            for done in played(whole, network, population, state):
                row = done.row
                for way in sent:
                    sent[way] += row[way]
                tell(done.number)
        except RunHalted as error:
            halted = first_line(error)
    clients, liars = len(population.shares), population.liars.ids
    removed = {int(client): round for client, round in row["removed"].items()} if "removed" in row else None
    result: Result = {
        "seconds": round(time.perf_counter() - began, 3),
        "rounds": row.get("round", 0),
        "clients": clients,
        "adversaries": liars,
        "halted": halted,
        **sent,
        "detection": None if removed is None else detection(removed, liars, clients),
        "row": row,
    }
    return {key: _strict(value) for key, value in result.items()}


def _strict(value: Any) -> Any:
    """Replace NaN and infinity by null, because they are not JSON."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
