"""A single-threaded worker process: it builds the population and answers what `Worker` sends."""

import contextlib
import json
import logging
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from fedshare.engine.single import Make
from fedshare.errors import UserError
from fedshare.machine.memory import Region
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.population import Population
from fedshare.simulation.jobs import Job, raised
from fedshare.simulation.messages import LIST, Header, Writer, sealed, tensors, value
from fedshare.state import State
from fedshare.tensors import Tensors
from fedshare.training.engine import Engine
from fedshare.training.scratch import Scratch


@dataclass(frozen=True)
class End:
    """The process's end of the connection."""

    connection: Connection
    commons: Region
    inbox: Region
    outbox: Region


def serve(end: End, build: Callable[[], Population], engine: Make) -> None:
    """Run a worker: build the population, then answer until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # the parent has already logged the data's warnings
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or has closed the connection
        try:
            population = build()
            playing = engine(population.scratch, population.training, population.task)
        except Exception as error:
            end.connection.send_bytes(sealed({"error": f"{type(error).__name__}: {error}"}))
            return
        end.connection.send_bytes(sealed({"ready": True}))
        common: list[Tensor] = []
        while True:
            message = json.loads(end.connection.recv_bytes())
            if "shared" in message:
                common = tensors(end.commons, message["shared"])
            groups, requests = value(end.inbox, message["jobs"], common)
            bodies = [partial(reply, _job(groups, *request), population) for request in requests]
            end.connection.send_bytes(sealed(_answered(end.outbox, playing.play(bodies), playing.reasons)))


def _job(
    groups: list[Tensors],
    purpose: str,
    round: int,
    client: int,
    named: dict[str, int],
    metrics: dict[str, float],
    state: State,
) -> Job:
    download = Payload({name: groups[number] for name, number in named.items()}, metrics)
    return Job(Purpose(purpose), round, client, download, state)


def reply(job: Job, population: Population, scratch: Scratch, engine: Engine) -> dict[str, Any]:
    try:
        answer = job.run(population, (scratch, engine))
        payload = {"tensors": answer.payload.tensors, "metrics": answer.payload.metrics}
        return payload | {"state": answer.state, "digests": answer.digests}
    except UserError as error:
        return {"wrong": str(error)}
    except Exception as error:
        return _failed(error)


def _answered(outbox: Region, replies: list[dict[str, Any]], reasons: set[str]) -> Header:
    message = Writer(outbox)

    def encoded(reply: dict[str, Any]) -> Any:
        try:
            return message.encoded(reply)
        except Exception as error:  # a sparse tensor, a set: the client's fault
            return message.encoded(_failed(error))

    found = [LIST, *map(encoded, replies)]
    return message.header([LIST, found, message.encoded(sorted(reasons))])


def _failed(error: Exception) -> dict[str, Any]:
    return {"error": raised(error), "trace": traceback.format_exc()}
