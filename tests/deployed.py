"""Servers and clients as processes, for tests of the deployment."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

import forked
from fedshare.experiments.cli import main
from fedshare.identity import keys
from fedshare.machine.devices import Place
from fedshare.runs import RunFolder, verify
from world import PATIENCE


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def certificates(folder: Path, clients: int = 3) -> Path:
    keys.make(folder, ["localhost"], clients, 30)
    return folder


def flower_app(folder: Path, source: str, config: str = "") -> Path:
    """A Flower app, in a module of its own name: `source` defines `server` and `client`; `config` is TOML."""
    name = f"app_{time.monotonic_ns()}"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    components = f'serverapp = "{name}:server"\nclientapp = "{name}:client"'
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "app"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "example"\n'
        f"[tool.flwr.app.components]\n{components}\n[tool.flwr.app.config]\n{config}\n"
    )
    return folder


class Running:
    """A process and what it says, in a file."""

    log: Path
    process: forked.Process

    @property
    def said(self) -> str:
        return self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Its exit status."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {PATIENCE:g} s:\n{self.said}") from None

    def until(self, text: str, count: int = 1) -> None:
        """Wait until it has said `text`."""
        eventually(lambda: self.said.count(text) >= count or self.process.poll() is not None, f"{text!r}:\n{self.said}")
        assert self.said.count(text) >= count, f"it ended without {text!r}:\n{self.said}"


class Command(Running):
    """One `fedshare ...` process."""

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self.log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
        environment = os.environ | {"FEDSHARE_STATE": str(folder / "state"), "PYTHONUNBUFFERED": "1"} | environ
        if arguments[0] == "client":  # a process that has loaded torch cannot set them
            environment |= Place(None, None, 1).environ()
        with self.log.open("w") as log:
            self.process = forked.python(
                *("-m", "fedshare", *arguments), stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def interruptible(*arguments: str) -> Iterator[forked.Process]:
    """One `fedshare ...` process in a group of its own, that obeys SIGINT.

    A job in the background of a shell ignores SIGINT, and so does whatever it starts: these tests, for instance.
    """
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from fedshare.experiments.cli import main; main(sys.argv[1:])"
    with forked.python("-c", program, *arguments, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def eventually(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, f"waited {PATIENCE:g} s for {what}"
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run(*arguments: str) -> None:
    """A command of ours, in this process."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code in (0, None)


def simulated(folder: Path, *overrides: str) -> Path:
    run("run", *overrides, f"folder={folder}", "workers=0")
    return folder


def assert_equal(deployed: Path, simulation: Path) -> None:
    same, sentence = verify(RunFolder(deployed), RunFolder(simulation))
    assert same, sentence
    mine, others = RunFolder(deployed).rows(), RunFolder(simulation).rows()
    assert [row | {"seconds": 0} for row in mine] == [row | {"seconds": 0} for row in others]


class Deployment:
    """A server process and three client processes, any of which may be killed and started again; `with` ends all."""

    def __init__(self, folder: Path, keys: Path, *overrides: str) -> None:
        self.folder, self.keys, self.overrides = folder, keys, overrides
        self.address, self.run = f"127.0.0.1:{free_port()}", folder / "run"
        self.commands: list[Command] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for command in self.commands:
            with command:
                pass

    def server(self, *flags: str) -> Command:
        return self._start(
            *("server", *self.overrides, "--listen", self.address, "--keys", str(self.keys), "--resume"),
            *(str(self.run), "--wait", str(PATIENCE), "--heartbeat", "0.5", "--grace", str(PATIENCE), *flags),
        )

    def client(self, id: int, *flags: str) -> Command:
        return self._start(
            *("client", self.address, "--keys", str(self.keys), "--id", str(id), "--gpu", "none"),
            *("--heartbeat", "0.5", *flags),
        )

    def _start(self, *arguments: str) -> Command:
        self.commands.append(Command(self.folder, *arguments))
        return self.commands[-1]

    def rounds(self) -> int:
        return lines(self.run / "metrics.jsonl")

    def reach(self, round: int, server: Command) -> None:
        eventually(
            lambda: self.rounds() >= round or server.process.poll() is not None, f"round {round}:\n{server.said}"
        )
        assert self.rounds() >= round, server.said
