"""Python processes of ours, forked from one that has loaded the libraries: a test need not wait seconds for imports.

`python` starts one, and so does `multiprocessing` where it is told to spawn one, between `install` and `close`. It is a
child of this process, with its own id, environment, working directory, files and, where asked for, session; signals and
exit statuses are those of any process. It has loaded the libraries that take long, and of our modules those that import
no gRPC, which cannot be forked. Where a process would differ (a variable that is read as libraries load, another system
than Linux), and within `cold`, it starts with nothing loaded.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

OURS = (
    "Crypto.Protocol.SecretSharing",
    "cryptography.x509",
    "httpx",
    "hydra",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "sklearn.datasets",
    "torch._dynamo",
    "typer",
    "fedshare.experiments.commands.run",
    "fedshare.models",
)
# Variables that are not read as libraries load, or that a library sets itself: with them a process may be forked.
LATE = ("COLUMNS", "CUDA_VISIBLE_DEVICES", "FEDSHARE_", "FLWR_", "FORCE_COLOR", "GRPC_", "HF_", "KMP_", "LINES", "PATH")
LATE += ("PYTEST_", "PYTHONUNBUFFERED", "TOKENIZERS_", "TORCHINDUCTOR_", "WANDB_", "XDG_STATE_HOME")
SUBREAPER = 36  # of prctl(2): its orphaned descendants become its children


class Forked:
    """A process that was forked, a child of this one: of `subprocess.Popen` what tests need."""

    def __init__(self, pid: int, stdout: IO[str] | None) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._end = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stdout:
            self.stdout.close()
        self.wait()

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and timeout is not None:
            waiting = select.poll()
            waiting.register(self._end, select.POLLIN)
            if not waiting.poll(timeout * 1000):
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
        status = self._ended(0)
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._end)
        return self.returncode


drawing = True  # whether the processes write their pictures
Process = Forked | subprocess.Popen[str]


def python(
    *arguments: str,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[str] | None = None,
    stderr: int | IO[str] | None = None,
    start_new_session: bool = False,
    libraries: tuple[str, ...] = OURS,
) -> Process:
    """Start ``python ARGUMENTS``, which are ``-m MODULE ...`` or ``-c PROGRAM ...``; outputs as of subprocess.Popen.

    `libraries` are the modules that it has loaded.
    """
    environment = dict(os.environ if env is None else env)
    if not _can_fork(environment):
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=start_new_session,
        )
    reading, writing = os.pipe() if stdout == subprocess.PIPE else (None, None)
    out = _number(stdout, 1) if writing is None else writing
    error = out if stderr == subprocess.STDOUT else _number(stderr, 2)
    request = {"arguments": arguments, "environment": environment, "folder": str(cwd or Path.cwd())}
    request |= {"session": start_new_session, "drawing": drawing}
    try:
        pid = _fork(libraries, request, {0: 0, 1: out, 2: error})
    finally:
        if writing is not None:
            os.close(writing)
    return Forked(pid, None if reading is None else os.fdopen(reading))


def run(
    *arguments: str,
    timeout: float,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    libraries: tuple[str, ...] = OURS,
) -> "subprocess.CompletedProcess[str]":
    """Start one, wait for its end, and return what it said on each output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        process = python(*arguments, cwd=cwd, env=env, stdout=out, stderr=error, libraries=libraries)
        try:
            process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        for said in (out, error):
            said.seek(0)
        return subprocess.CompletedProcess(arguments, process.returncode, out.read(), error.read())


def _number(output: int | IO[str] | None, usual: int) -> int:
    return usual if output is None else output if isinstance(output, int) else output.fileno()


@contextmanager
def cold() -> Iterator[None]:
    """Start processes with nothing loaded."""
    global _cold
    before, _cold = _cold, True
    try:
        yield
    finally:
        _cold = before


def install() -> None:
    """Fork also what `multiprocessing` spawns."""
    multiprocessing.util.spawnv_passfds = _spawn


def close() -> None:
    """End the processes that are forked."""
    multiprocessing.util.spawnv_passfds = _SPAWN
    while _preloaded:
        _preloaded.popitem()[1].close()


_cold = False
_one_at_a_time = threading.Lock()
_BEFORE = dict(os.environ)  # any test
_SPAWN = multiprocessing.util.spawnv_passfds


def _spawn(program: bytes, arguments: list[str], files: list[int]) -> int:
    """The id of a new process with these files open; a child of this one."""
    given = [argument for argument in arguments[1:] if argument != "-B"]  # as where no bytecode is to be written
    option, *rest = given
    if option != "-c" or rest[1:] != ["--multiprocessing-fork"] or not _can_fork(os.environ):
        return _SPAWN(program, arguments, files)
    request = {"arguments": given, "environment": dict(os.environ), "folder": str(Path.cwd())}
    return _fork(OURS, request | {"session": False, "drawing": True}, {file: file for file in (0, 1, 2, *files)})


def _fork(libraries: tuple[str, ...], request: dict[str, object], files: dict[int, int]) -> int:
    """The id of a new process. `files` are the file descriptors, by their numbers there."""
    with _one_at_a_time:  # who adopts is a setting of the whole process
        if libraries not in _preloaded:
            _preloaded[libraries] = _Preloaded(libraries)
        return _preloaded[libraries].fork(request | {"files": list(files)}, list(files.values()))


def _can_fork(environment: Mapping[str, str]) -> bool:
    return not _cold and sys.platform == "linux" and _early(environment) == _early(_BEFORE)


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of which some are read as libraries load."""
    early = {name: value for name, value in environment.items() if not name.startswith(LATE)}
    return {"MKL_NUM_THREADS": early.get("OMP_NUM_THREADS", "")} | early  # as MKL does


class _Preloaded:
    """The process that is forked. It ends with this one, or by `close`."""

    def __init__(self, libraries: tuple[str, ...]) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno()), *libraries]
            self._process = subprocess.Popen(command, env=_BEFORE, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def fork(self, request: Mapping[str, object], files: list[int]) -> int:
        adopt = ctypes.CDLL(None, use_errno=True).prctl
        adopt(SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self._requests, [json.dumps(request).encode()], files)
            answer = self._requests.recv(100)
        finally:
            adopt(SUBREAPER, 0, 0, 0, 0)
        if not answer:
            raise RuntimeError(f"the preloaded process has ended: exit status {self._process.wait()}")
        return int(answer)

    def close(self) -> None:
        self._requests.close()
        self._process.wait()


_preloaded = dict[tuple[str, ...], _Preloaded]()  # by what they have loaded


def _serve(requests: socket.socket, libraries: list[str]) -> dict[str, Any] | None:
    """Fork for each request. Returns it in each process that was forked, and in the end None in this one."""
    for name in libraries:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that collecting garbage does not copy the libraries' pages
    while True:
        data, received, _, _ = socket.recv_fds(requests, 1 << 20, 100)
        if not data:
            return None
        named, name = os.pipe()  # the id of the process
        ready, go = os.pipe()
        if (between := os.fork()) == 0:
            if pid := os.fork():  # when this process ends, the asker adopts that one
                os.write(name, str(pid).encode())
                os._exit(0)
            for file in (named, name, go, requests.detach()):
                os.close(file)
            os.read(ready, 1)  # until it is adopted
            request: dict[str, Any] = json.loads(data)
            numbers = request.pop("files")
            above = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, max(numbers) + 1) for file in received]
            for number, file in zip(numbers, above, strict=True):
                os.dup2(file, number)
            for file in {ready, *received, *above} - set(numbers):
                os.close(file)
            return request
        os.waitpid(between, 0)
        requests.send(os.read(named, 100))
        for file in (named, name, ready, go, *received):
            os.close(file)


def _become(arguments: list[str], environment: dict[str, str], folder: str, session: bool, drawing: bool) -> None:
    """Be the process that was asked for."""
    if session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.fsync = os.fstat  # type: ignore[assignment]  # see conftest.py
    if not drawing and (backend := sys.modules.get("matplotlib.backends.backend_svg")):
        backend.FigureCanvasSVG.print_svg = lambda _, file, **__: file.write(b"<svg/>")  # see conftest.py
    multiprocessing.process.ORIGINAL_DIR = folder
    if environment.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)
    option, what, *rest = arguments
    sys.argv = [option, *rest]
    sys.path[0] = "" if option == "-c" else folder
    try:
        if option == "-c":
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        _end(end.code or 0)
    _end(0)


def _end(status: int) -> None:
    """End as Python does, but for taking the libraries down, which would cost half a second of copied pages."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(status)
    os._exit(status)


if __name__ == "__main__":
    asked = _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    if asked:
        _become(**asked)
