"""Experiment trackers, fed from the rows of a run. This is the only file that uses wandb.

wandb runs in a separate process, which reads rows from a pipe: if it hangs, raises or prompts, the run continues, and
nothing is lost, because `metrics.jsonl` is authoritative.
"""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fedshare.errors import UserError, first_line

Note = Callable[[str], None]
MODES = ("auto", "online", "offline", "disabled")
MARK = "fedshare> "  # prefix of log lines to show to the user


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@runtime_checkable
class Tracker(Protocol):
    """Called by an entry point, in this order. Nothing here raises: a broken tracker never breaks a run."""

    def start(self, config: dict[str, Any], name: str, group: str | None, folder: Path, note: Note = _note) -> None: ...
    def log(self, row: dict[str, Any]) -> None: ...
    def finish(self, completed: bool = True) -> None: ...


class Watcher(Tracker, Protocol):
    """A tracker of a deployment, which is also told why a client does not take part."""

    def refused(self, reason: str, client: int | None = None) -> None: ...


@dataclass(frozen=True)
class NoTracker:
    """Tracks nothing."""

    def start(self, config: dict[str, Any], name: str, group: str | None, folder: Path, note: Note = _note) -> None: ...
    def log(self, row: dict[str, Any]) -> None: ...
    def finish(self, completed: bool = True) -> None: ...


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases: one run per `start`, written below `folder`; a resumed run keeps its id."""

    project: str = "fedshare"  # the project that the runs appear in
    entity: str | None = None  # account or team; wandb's default if None
    mode: str = "auto"  # auto is online where there is an account and a network, offline elsewhere
    group: str | None = None  # runs shown together; None: the group given to `start`
    deadline: float = 60.0  # seconds to wait for wandb at the end of a run
    _live: list["_Process"] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r} must be one of {', '.join(MODES)}")
        if not self.deadline > 0:
            raise UserError(f"deadline={self.deadline!r} must be above 0 seconds")
        found = importlib.util.find_spec("wandb")
        if found is None or found.origin is None:  # a leftover folder named wandb counts as a package
            raise UserError("wandb is not installed: pip install wandb, or choose tracking=none")

    def start(self, config: dict[str, Any], name: str, group: str | None, folder: Path, note: Note = _note) -> None:
        """Begin a run. `note` prints a line."""
        if self.mode == "disabled":
            return
        init = {
            "project": self.project,
            "entity": self.entity,
            "group": self.group or group,
            "name": name,
            "dir": str(folder.resolve()),
            "config": config,
        }
        try:
            hello = {"init": init, "mode": self.mode, "deadline": self.deadline}
            self._live.append(_Process(hello, folder, self.deadline, note))
        except Exception as error:
            note(f"wandb: {first_line(error)}; this run is not tracked")

    def log(self, row: dict[str, Any]) -> None:
        self._each(lambda process: process.log(row))

    def finish(self, completed: bool = True) -> None:
        """End the run, waiting `deadline` seconds at most; a run not `completed` is shown as failed."""
        self._each(lambda process: process.finish(completed))
        self._live.clear()

    def _each(self, do: Callable[["_Process"], None]) -> None:
        for process in list(self._live):
            try:
                do(process)
            except Exception as error:
                self._live.remove(process)
                process.kill()
                process.note(f"wandb: {first_line(error)}; tracking stopped, the run goes on")


class _Process:
    """The run's end of the pipe: one JSON object per line, never blocking, except in `finish`."""

    def __init__(self, hello: dict[str, Any], folder: Path, deadline: float, note: Note) -> None:
        self.deadline, self.note, self.log_file = deadline, note, folder / "tracking.log"
        here = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "PYTHONUNBUFFERED": "1"}
        with self.log_file.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedshare.experiments.tracking"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                bufsize=0,
                start_new_session=True,  # no terminal to prompt on, and no Ctrl-C meant for the run
                env={"WANDB_CACHE_DIR": str(folder.resolve() / "wandb" / "cache"), **os.environ, **here},
            )
        assert self.process.stdin is not None
        self.pipe = self.process.stdin.fileno()
        os.set_blocking(self.pipe, False)
        self.waiting = b""
        self._send(hello)

    def log(self, row: dict[str, Any]) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(self._last_words() or f"ended with status {self.process.returncode}")
        self._send({"row": scalars(row)})

    def finish(self, completed: bool) -> None:
        if completed:
            self._send({"finish": 0})  # without this line, wandb shows the run as failed
        try:
            self.process.communicate(self.waiting, timeout=self.deadline)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not finished after {self.deadline:g} s, see {self.log_file}") from None
        words = self._last_words()
        if self.process.returncode:
            raise RuntimeError(words or f"ended with status {self.process.returncode}")
        if words:
            self.note(f"wandb: {words}")

    def kill(self) -> None:
        with suppress(OSError):
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def _send(self, message: dict[str, Any]) -> None:
        self.waiting += json.dumps(message, default=str).encode() + b"\n"
        with suppress(BlockingIOError, BrokenPipeError):  # full: the rest goes with the next row; broken: `poll` tells
            while self.waiting:
                self.waiting = self.waiting[os.write(self.pipe, self.waiting) :]

    def _last_words(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()
        return next((line.removeprefix(MARK) for line in reversed(lines) if line.startswith(MARK)), "")


def scalars(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of ``metrics.jsonl`` for wandb: numbers, and one histogram instead of a key per client."""
    record: dict[str, Any] = {key: value for key, value in row.items() if isinstance(value, int | float)}
    record |= {f"seconds/{phase}": seconds for phase, seconds in row.get("seconds", {}).items()}
    for way in ("up", "down"):
        record |= {f"bytes_{way}/{group}": size for group, size in row.get(f"bytes_{way}_by_group", {}).items()}
    record |= {key: len(row[key]) for key in ("clients", "dropped", "absent", "untested") if key in row}
    record |= {f"before/{key}": row["before"][key] for key in ("accuracy", "loss") if key in row.get("before", {})}
    for group in ("average", "validation", "unseen"):
        record |= {f"{group}/{key}": value for key, value in row.get(group, {}).items()}
    name = row.get("headline", "accuracy")
    values = [value for value in row.get("per_client", {}).get(name, {}).values() if value is not None]
    if values:
        counts, edges = np.histogram(values, bins=20, range=(0.0, 1.0) if name == "accuracy" else None)
        record[f"{name}_of_clients"] = {"counts": counts.tolist(), "edges": edges.tolist()}
    return record


def _tell(text: str) -> None:
    print("\n" + MARK + text, flush=True)


def _serve() -> None:
    """Main loop of the wandb process: read rows until the pipe closes, then end the run."""
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # prompts get no answer
    hello = json.loads(lines.readline())

    import wandb

    init, mode, deadline = hello["init"], hello["mode"], hello["deadline"]
    before = sorted(Path(init["dir"], "wandb").glob("*run-*-*"), key=lambda path: path.stat().st_mtime)
    if before:
        init |= {"id": before[-1].name.removeprefix("offline-").split("-", 2)[2], "resume": "allow"}
    settings = wandb.Settings(console="off", init_timeout=deadline / 2, x_stats_pid=os.getppid())
    reason = ""
    try:
        run = wandb.init(**init, mode=None if mode == "auto" else mode, settings=settings)
    except wandb.Error as error:
        if mode != "auto":
            raise
        reason = f" ({first_line(error)})"
        run = wandb.init(**init, mode="offline", settings=settings)
    run.define_metric("*", step_metric="round")

    status = 1
    for line in lines:
        message = json.loads(line)
        if "row" in message:
            run.log({key: _value(value) for key, value in message["row"].items()})
        else:
            status = message["finish"]
    # If the run is gone as well, nothing else would end a wandb that hangs.
    orphan = threading.Timer(deadline + 5, os._exit, (1,))
    orphan.daemon = True
    orphan.start()
    where = f"offline{reason}, to upload: wandb sync {Path(run.dir).parent}" if run.offline else run.url
    disabled = run.disabled
    run.finish(exit_code=status)
    if where and not disabled:
        _tell(where)


def _value(value: Any) -> Any:
    import wandb

    if isinstance(value, dict):
        return wandb.Histogram(np_histogram=(value["counts"], value["edges"]))
    return value


if __name__ == "__main__":
    try:
        _serve()
    except Exception as error:
        _tell(first_line(error))
        raise SystemExit(1) from None
