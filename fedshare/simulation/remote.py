"""A worker behind any carrier of bytes: it is asked and answers in bytes made by `pack`."""

import logging
import sys
from collections.abc import Callable
from functools import partial

import torch

import fedshare
from fedshare.engine.single import Make
from fedshare.errors import first_line
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.population import Population
from fedshare.simulation.jobs import Job
from fedshare.simulation.serving import reply
from fedshare.state import State, pack, unpack
from fedshare.tensors import digest


class Remote:
    """A worker of this process, at `host` and `node`, as whoever carries the bytes names them.

    `folders` are those that the run's process imports from.
    """

    def __init__(self, folders: list[str], host: str, node: str) -> None:
        self._host, self._node = host, node
        sys.path += [folder for folder in folders if folder not in sys.path]  # `build` may need modules from there
        logging.disable(logging.WARNING)  # the run's process has already logged the data's warnings
        torch.set_num_threads(1)

    def begin(self, build: Callable[[], Population], engine: Make, drawn: bytes) -> bytes:
        """Create the population, with the run's initial model: this machine need not have the run's folder."""
        place = {"host": self._host, "node": self._node}
        try:
            self._population = population = build()
            population.scratch.begin(unpack(drawn))
            self._playing = engine(population.scratch, population.training, population.task)
        except Exception as error:
            return pack(place | {"error": f"{type(error).__name__}: {first_line(error)}"})
        return pack(place | {"traits": traits(population)})

    def play(self, request: bytes, common: bytes) -> bytes:
        """Run a group's jobs. Those without tensors of their own have the `common` ones."""
        tensors = unpack(common)
        bodies = []
        for one in unpack(request)["jobs"]:
            download = Payload(one.get("tensors", tensors), one["metrics"])
            job = Job(Purpose(one["purpose"]), one["round"], one["client"], download, one["state"])
            bodies.append(partial(reply, job, self._population))
        return pack({"replies": self._playing.play(bodies), "reasons": sorted(self._playing.reasons)})


def traits(population: Population) -> State:
    """Return what must be alike on all machines; otherwise it would matter which of them simulates a client."""
    return {
        "fedshare": fedshare.__version__,
        "torch": str(torch.__version__),
        "initial model": population.scratch.fingerprint,
        "numbers of examples": digest(torch.tensor(population.sizes())),
    }
