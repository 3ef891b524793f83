"""Single-threaded worker processes that play the cells of a matrix, one cell at a time."""

import contextlib
import json
import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Generator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeAlias

import torch

from fedshare.errors import RunHalted, UserError, first_line
from fedshare.experiments.commands.cell import Cell, Result, play
from fedshare.simulation.worker import START_DEADLINE, ctrl_c_ignored, death

Outcome: TypeAlias = Result | str  # or the reason why there is no result


def play_all(cells: list[Cell], workers: int, timeout: float) -> Generator[tuple[Cell, Outcome], None, None]:
    """Yield each cell with its outcome, as they end. `workers` 0: in this process.

    A late worker is killed, and a dead one replaced: its cell has no result, the others continue.
    """
    if not workers:
        for cell in cells:
            yield cell, _attempt(cell.config, lambda _: None)
        return
    waiting, crew = list(reversed(cells)), list[_Worker]()
    try:
        crew += [_Worker() for _ in range(min(workers, len(cells)))]
        while crew:
            nearest = min(worker.deadline for worker in crew)
            ready = wait([worker.connection for worker in crew], max(0.0, min(nearest - time.monotonic(), 3600.0)))
            for worker in list(crew):
                if worker.connection in ready:
                    outcome = worker.hear()
                elif time.monotonic() > worker.deadline:
                    outcome = f"no result in timeout={timeout:g} s: it was in round {worker.round + 1}"
                    worker.gone = True
                else:
                    continue
                if outcome is not None:
                    if worker.cell is None:
                        raise RunHalted(f"a worker process could not start: {outcome}")
                    yield worker.cell, outcome
                if worker.gone:
                    worker.end()
                    crew.remove(worker)
                    if waiting:
                        crew.append(_Worker())
                elif worker.idle:
                    if waiting:
                        worker.send(waiting.pop(), timeout)
                    else:
                        worker.end()
                        crew.remove(worker)
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        with ctrl_c_ignored():  # inherited by the child: only its parent handles Ctrl-C
            self.process.start()
        other.close()  # so that the death of the process closes the connection
        self.cell: Cell | None = None
        self.round, self.idle, self.gone = 0, False, False
        self.deadline = time.monotonic() + START_DEADLINE

    def send(self, cell: Cell, timeout: float) -> None:
        self.cell, self.round, self.idle = cell, 0, False
        self.deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError):  # the worker has died; hear() detects that too
            self.connection.send_bytes(json.dumps(cell.config).encode())

    def hear(self) -> Outcome | None:
        """Receive a message; return the outcome if it is one."""
        try:
            said: Any = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            self.gone = True
            return f"its worker process died ({death(self.process)})"
        if "round" in said:
            self.round = said["round"]
            return None
        self.idle, self.deadline = True, math.inf
        outcome: Outcome | None = said["outcome"]
        return outcome

    def end(self) -> None:
        """Kill the worker: unsent results are lost, and their cells played again."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()


def _serve(connection: Connection) -> None:
    """Worker's main loop: report ready, then answer until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def say(what: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(what).encode())

    with contextlib.suppress(EOFError, OSError):  # the parent has exited or closed the connection
        say({"outcome": None})
        while True:
            config = json.loads(connection.recv_bytes())
            say({"outcome": _attempt(config, lambda round: say({"round": round}))})


def _attempt(config: dict[str, Any], tell: Any) -> Outcome:
    try:
        return play(config, tell)
    except UserError as error:
        return first_line(error)
    except Exception as error:  # from third-party strategies; the other cells continue
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {first_line(error)} ({Path(last.filename).name}, line {last.lineno})"
