"""A fleet for tests: Flower's SuperLink and SuperNodes as processes on this machine, with TLS and node authentication.

What it needs it makes: keys, ports, a Flower home. Nothing outside its folder is read or written.
Nodes speak gRPC up to flwr 1.39, and HTTP since.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import preloaded

import forked
from fedshare.identity import keys
from fedshare.transport.flower.private import why_no_grpc_fleet
from world import PATIENCE

GRPC = not why_no_grpc_fleet()
Value = str | int | float | bool
HOST = "127.0.0.1"
SHUT_DOWN = 15.0  # seconds until a process is killed
_READY = {
    "superlink": "Application startup complete",
    "superexec": "Starting Flower SuperExec",
    "preloaded": "preloaded",
}


class Fleet:
    """``with Fleet(tmp_path, 3) as fleet: log = fleet.run(app, {"num-server-rounds": 3})``.

    The processes are "superlink", "superexec", "client-0", "client-1", ... SuperExec runs the ServerApps and, if
    `durable`, the SuperLink has a database, so that a run outlives a SuperLink that is killed; on a busy machine it may
    lose a message, for nothing in it waits longer than 5 s to write. Each process has a folder of its name as working
    directory and Flower home: Flower's installing of an app is not safe against a neighbour that does the same.
    A node's partition-id is its number, and `extras` adds to its node config, by name. With `preload`, apps are forks
    of a process that has loaded the libraries: see `preloaded.py`.
    A wait that ends without what it waits for is an AssertionError, with the logs.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int,
        extras: Mapping[str, Mapping[str, Value]] | None = None,
        preload: bool = False,
        durable: bool = True,
    ) -> None:
        self.folder = folder
        self._database = f"{folder}/superlink/state.db" if durable else ":flwr-in-memory:"
        self.names = [f"client-{number}" for number in range(nodes)]
        self.node_ids: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        http, fleet, *runtime = map(str, free_ports(2 + nodes))
        self._commands = {"superlink": self._superlink(http, fleet), "superexec": self._superexec(http)}
        # Its path may have 100 bytes, which a folder of pytest's can exceed.
        self._socket = Path(tempfile.mkdtemp(prefix="fleet-"), "socket") if preload else None
        if self._socket:
            self._commands["preloaded"] = [sys.executable, preloaded.__file__, str(self._socket)]
        for number, name in enumerate(self.names):
            config = {"partition-id": number, "num-partitions": nodes, **(extras or {}).get(name, {})}
            self._commands[name] = self._supernode(name, fleet if GRPC else http, runtime[number], config)
        self._http = http

    def __enter__(self) -> Self:
        try:
            keys.make(self.folder / "keys", [HOST], len(self.names), 1)
            for name in ("user", *self._commands):
                (self.folder / name).mkdir()
            connection = {"address": f"{HOST}:{self._http}", "root-certificates": f"{self.folder}/keys/server/ca.crt"}
            (self.folder / "user" / "config.toml").write_text(f"[superlink.fleet]\n{_toml(connection)}")
            if self._socket:
                preloaded.install(self.folder / "bin", self._socket)
                self.start("preloaded")
            self.start("superlink", "superexec")
            for name in self.names:
                public = self.folder / "keys" / name / "supernode.pub"
                answer = self._asked("supernode", "register", str(public), "fleet", "--name", name)
                self.node_ids[name] = int(answer["node-id"])
            self.start(*self.names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, *names: str) -> None:
        """Start processes, or end them and start them again, and wait until each serves. A node is online then."""
        self._end([self._processes.pop(name) for name in names if name in self._processes])
        for name in names:
            home, command = self.folder / name, self._commands[name]
            with (home / "log").open("wb") as log:
                self._processes[name] = subprocess.Popen(
                    command, cwd=home, env=self._environment(home), stdout=log, stderr=log, start_new_session=True
                )
        for name in names:
            self._wait(name, "SuperNode ID: " if name in self.names else _READY[name])

    def signal(self, name: str, number: int) -> None:
        """Send a signal to one process: SIGKILL, SIGTERM, SIGSTOP, SIGCONT."""
        self._processes[name].send_signal(number)

    def pid(self, name: str) -> int:
        """Of a process; it leads a session that holds all it has started."""
        return self._processes[name].pid

    def wait(self, name: str) -> int:
        """The exit status of a process that was told to end."""
        return self._processes[name].wait(SHUT_DOWN)

    def submit(self, app: Path, config: Mapping[str, Value] | None = None) -> str:
        """Start a run of the app in the folder `app`, and return the run's id without waiting for it."""
        overrides: list[str] = []
        if config:
            file = self.folder / "user" / "run-config.toml"
            file.write_text(_toml(config))
            overrides = ["--run-config", str(file)]
        return str(self._asked("run", str(app), "fleet", *overrides)["run-id"])

    def stop(self, run: str) -> None:
        """What ``flwr stop`` does."""
        self._asked("stop", run, "fleet")

    def status(self, run: str) -> str:
        """Such as ``running`` or ``finished:completed``."""
        return str(self._asked("list", "fleet", "--run-id", run)["runs"][0]["status"])

    def log(self, run: str) -> str:
        """What the ServerApp of a run has said so far."""
        return self._flwr("log", run, "fleet", "--show")

    def end(self, run: str, timeout: float) -> tuple[str, str]:
        """Wait for the end of a run; its status and its log."""
        try:
            log = self._flwr("log", run, "fleet", timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end within {timeout} s:\n{self.log(run)}") from None
        return self.status(run), log

    def finish(self, run: str, timeout: float) -> str:
        """Wait for the end of a run; its log. A run that does not complete is an AssertionError."""
        status, log = self.end(run, timeout)
        assert status == "finished:completed", f"{status}\n{log}"
        return log

    def run(self, app: Path, config: Mapping[str, Value] | None = None, timeout: float = PATIENCE) -> str:
        """Run an app to its end; its log."""
        return self.finish(self.submit(app, config), timeout)

    def output(self, name: str) -> str:
        """What a process has written since it was last started."""
        return (self.folder / name / "log").read_text(errors="replace")

    def close(self) -> None:
        """End every process, politely and then not; the nodes first, for they say goodbye to the SuperLink."""
        for names in (self.names, ["superexec"], ["superlink"], ["preloaded"]):
            self._end([self._processes.pop(name) for name in names if name in self._processes])
        if self._socket:
            shutil.rmtree(self._socket.parent, ignore_errors=True)

    def _end(self, processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # a stopped process hears nothing else
        deadline = time.monotonic() + SHUT_DOWN
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and its apps, which are of its session
            process.wait()

    def _superlink(self, http: str, fleet: str) -> list[str]:
        server = self.folder / "keys" / "server"
        command = [_program("flower-superlink"), "--host", HOST, "--port", http, "--isolation", "process"]
        command += ["--enable-supernode-auth", "--database", self._database]
        command += ["--fleet-api-type", "grpc-rere", "--fleet-api-address", f"{HOST}:{fleet}"] if GRPC else []
        command += ["--ssl-ca-certfile", f"{server}/ca.crt", "--ssl-certfile", f"{server}/server.crt"]
        return [*command, "--ssl-keyfile", f"{server}/server.key"]

    def _superexec(self, http: str) -> list[str]:
        command = [_program("flower-superexec"), "--runtime-api-address", f"{HOST}:{http}"]
        return [*command, "--root-certificates", f"{self.folder}/keys/server/ca.crt"]

    def _supernode(self, name: str, fleet: str, runtime: str, config: Mapping[str, Value]) -> list[str]:
        own = self.folder / "keys" / name
        command = [_program("flower-supernode"), *["--grpc-rere"] * GRPC]
        command += ["--superlink", f"{HOST}:{fleet}", "--port", runtime]
        command += ["--root-certificates", f"{own}/ca.crt", "--auth-supernode-private-key", f"{own}/supernode"]
        return [*command, "--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())]

    def _environment(self, home: Path) -> dict[str, str]:
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return os.environ | {
            "PATH": os.pathsep.join(path),  # for what Flower starts
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; 1 by default, and faster ones only cost CPU
            "OMP_NUM_THREADS": "1",
        }

    def _asked(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._flwr(*arguments, "--format", "json"))
        assert answer["success"], f"flwr {' '.join(arguments)}: {answer}"  # where the exit status is 0 all the same
        return answer

    def _flwr(self, *arguments: str, timeout: float = PATIENCE) -> str:
        home = self.folder / "user"
        program = "import sys; from flwr.cli.app import app; sys.argv[0] = 'flwr'; app()"
        environment = self._environment(home)
        done = forked.run(
            "-c", program, *arguments, cwd=home, env=environment, timeout=timeout, libraries=("flwr.cli.app",)
        )
        assert not done.returncode, f"flwr {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _wait(self, name: str, sign: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while sign not in (output := self.output(name)):
            assert self._processes[name].poll() is None, f"{name} ended before it said {sign!r}:\n{output}"
            assert time.monotonic() < deadline, f"{name} did not say {sign!r} within {PATIENCE} s:\n{output}"
            time.sleep(0.05)


def copy_of_fedshare(folder: Path) -> Path:
    """This repository as a Flower app: the files of the working tree that are part of it."""
    root = Path(__file__).parents[1]
    for name in ("fedshare", "strategies", "experiments"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, folder)
    return folder


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _toml(values: Mapping[str, Value]) -> str:
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
