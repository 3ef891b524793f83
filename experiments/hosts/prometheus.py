"""Prometheus metrics of a deployment, over HTTP.

A tracker, fed from the rows of a run; connected clients and the checkpoint's age are read at each scrape.
"""

import math
import platform
import time
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fedshare
from fedshare.experiments.hosts.metrics_page import Page
from fedshare.experiments.tracking import Note, _note
from fedshare.machine.extras import importing
from fedshare.report.reasons import FAILURES, REFUSALS, failure, refusal
from fedshare.report.rows import headline
from fedshare.runs import RunFolder, checkpoint

with importing("prometheus_client", "--metrics"):
    from prometheus_client import Counter, Gauge, Info

STATES = {"trained": "clients", "dropped": "dropped", "absent": "absent", "untested": "untested"}
STATES |= {"suspended": "suspended"}  # -> a row's key
_MEANS = {"all": "", "mean": "_mean", "worst10": "_worst10"}  # what a score is over -> suffix of its key in a row


class Exporter(Page):
    """Counters start with this process, as Prometheus expects; gauges also show the previous round."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"fedshare_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"fedshare_{name}", about, labels, registry=registry)

        self._rounds = counter("rounds", "Rounds that this process has completed")
        self._seconds = counter("round_seconds", "Seconds that rounds took, by phase", "phase")
        self._bytes = counter("bytes", "Bytes of tensors that travelled, without framing", "direction")
        self._failures = counter("client_failures", "Clients dropped from a round, or untested in it", "when", "reason")
        self._refusals = counter("refusals", "Callers and nodes that were not let in", "reason")
        self._round = gauge("round", "The last round that is complete")
        self._planned = gauge("rounds_planned", "The round with which the run is over")
        self._clients = gauge("clients", "Clients of the last round", "state")
        self._score = gauge("score", "The headline metric of the last test", "metric", "over")
        self._loss = gauge("loss", "The last losses", "of")
        self._present = gauge("clients_present", "Clients that are connected, or may come back within --grace")
        self._connections = gauge("connections", "Clients that are connected")
        self._checkpoint = gauge("checkpoint_round", "The round of the last checkpoint; 0: there is none")
        self._age = gauge("checkpoint_age_seconds", "Seconds since the last checkpoint; NaN: there is none")
        self._run = Info("fedshare_run", "The run", registry=registry)
        packages = {name: version(name) for name in ("torch", "flwr", "grpcio")}
        python = {"version": fedshare.__version__, "python": platform.python_version()}
        Info("fedshare_build", "What runs", registry=registry).info(python | packages)
        for reason in FAILURES:  # all of them, so that a rate has a start
            for when in ("train", "test"):
                self._failures.labels(when, reason)
        for reason in REFUSALS:
            self._refusals.labels(reason)
        for way in ("up", "down"):
            self._bytes.labels(way)

    def watch(self, present: Callable[[], Collection[int]], connections: Callable[[], int]) -> None:
        """Set the functions that report present clients and connections."""
        self._present.set_function(lambda: len(present()))
        self._connections.set_function(connections)

    def refused(self, reason: str, client: int | None = None) -> None:
        self._refusals.labels(refusal(reason)).inc()

    # A tracker.

    def start(self, config: dict[str, Any], name: str, group: str | None, folder: Path, note: Note = _note) -> None:
        run = RunFolder(folder)
        self._run.info({"name": name, "folder": str(folder)})
        self._planned.set(config["rounds"])
        self._checkpoint.set_function(lambda: next(iter(checkpoint.rounds(run.checkpoints)), 0))
        self._age.set_function(lambda: _age(run.checkpoints))
        for row in run.rows():
            self._show(row)

    def log(self, row: dict[str, Any]) -> None:
        self._rounds.inc()
        for phase, seconds in row.get("seconds", {}).items():
            self._seconds.labels(phase).inc(seconds)
        for way in ("up", "down"):
            self._bytes.labels(way).inc(row.get(f"bytes_{way}", 0))
        for when, key in (("train", "dropped"), ("test", "untested")):
            for reason in row.get(key, {}).values():
                self._failures.labels(when, failure(reason)).inc()
        self._show(row)

    def finish(self, completed: bool = True) -> None:
        """Do nothing: the page lives as long as the server."""

    def _show(self, row: dict[str, Any]) -> None:
        for state, key in STATES.items():
            if key in row or key == "suspended":  # not every round is tested
                self._clients.labels(state).set(len(row.get(key, ())))
        name = headline([row])
        for over, suffix in _MEANS.items():
            _set(self._score, row.get(name + suffix), name, over)
        for of, loss in (("test", row.get("loss")), ("train", row.get("train_loss"))):
            _set(self._loss, loss, of)
        self._round.set(row["round"])


def _set(gauge: Gauge, value: float | None, *labels: str) -> None:
    if value is not None:
        gauge.labels(*labels).set(value)


def _age(folder: Path) -> float:
    """The age of the newest checkpoint in seconds; NaN if there is none."""
    try:
        return max(0.0, time.time() - max(path.stat().st_mtime for path in folder.glob("round-*.json")))
    except (OSError, ValueError):  # removed meanwhile, or none
        return math.nan
