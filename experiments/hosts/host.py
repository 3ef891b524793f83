"""The clients of one host: one process each, on its own device, restarted when it crashes."""

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fedshare.machine.devices import Place
from fedshare.report.clock import say, stamped
from fedshare.transport.stream import descriptors

BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before a restart, by the number of crashes in a row
GRACE = 10.0  # seconds for clients to shut down
TICK = 0.2  # seconds between checks of the processes
FINAL = (0, 2, 3)  # done, bad input, refused: a restart would change nothing
CHUNK = 1 << 20  # bytes: more than any pipe holds

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def start(commands: dict[int, list[str]], places: dict[int, Place]) -> int:
    """Run `commands`, one process per client id, each in the environment of its place, until all have finished.

    Crashed clients are restarted. The first SIGTERM or SIGINT is forwarded, a second one kills. Call it in the main
    thread: when that ends, for any reason, the clients end (on Linux; elsewhere when they next write a line). Returns
    the worst of the clients' last exit statuses; signal n counts as 128 + n.
    """
    descriptors.raise_limit()
    clients = [_Client(id, command, places[id]) for id, command in commands.items()]
    try:
        with _signals() as signals:
            for client in clients:
                client.start()
            while not signals and not all(client.ended for client in clients):
                _relay(clients)
                for client in clients:
                    client.supervise()
            if signals:
                _stop(clients, signals)
    finally:
        for client in clients:
            client.kill()
        for client in clients:
            client.reap()
    return max((client.status for client in clients), default=0)


class _Client:
    def __init__(self, id: int, command: list[str], place: Place) -> None:
        self.id, self.command, self.place = id, command, place
        self.process: subprocess.Popen[bytes] | None = None
        self.writes = False  # whether its output is open
        self.line = b""
        self.crashes = 0  # in a row
        self.began = self.due = 0.0
        self.status = 0  # the last one
        self.ended = False  # will not be restarted

    def start(self) -> None:
        self.note(f"starting on {self.place}")
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | self.place.environ() | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # only the parent gets Ctrl-C, and forwards it once
            preexec_fn=_end_with(os.getpid()),
        )
        os.set_blocking(self.fileno(), False)
        self.writes, self.began = True, time.monotonic()

    def supervise(self) -> None:
        """Check whether it has ended, and restart it when due."""
        if self.running() or self.ended:
            return
        if self.process is None:
            if time.monotonic() >= self.due:
                self.start()
            return
        how = self.reap()
        if self.status in FINAL:
            self.ended = True
            if self.status:
                self.note(f"{how}; not started again")
            return
        self.crashes = 0 if time.monotonic() - self.began > BACKOFF[-1] else self.crashes
        wait = BACKOFF[min(self.crashes, len(BACKOFF) - 1)]
        self.crashes += 1
        self.due = time.monotonic() + wait
        self.note(f"{how}; starting again in {wait:g} s")

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def reap(self) -> str:
        """Release an ended process and print its last lines; return how it ended."""
        if self.process is None:
            return ""
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it hangs in the kernel, for instance in a driver
            code = -signal.SIGKILL
            self.note(f"process {self.process.pid} cannot be killed")
        self.relay()
        if self.line:
            self.say(self.line.decode(errors="replace"))
        assert self.process.stdout
        self.process.stdout.close()
        self.process, self.writes, self.line = None, False, b""
        self.status = code if code >= 0 else 128 - code
        return f"exit status {code}" if code >= 0 else f"ended by signal {-code} ({signal.strsignal(-code)})"

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it, including its child processes."""
        if self.process is not None and self.running():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def fileno(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def relay(self) -> None:
        """Print the lines received."""
        with suppress(BlockingIOError):
            chunk = os.read(self.fileno(), CHUNK)
            self.writes = bool(chunk)
            *lines, self.line = (self.line + chunk).split(b"\n")
            if len(self.line) > CHUNK:
                lines, self.line = [*lines, self.line], b""
            for line in lines:
                self.say(line.decode(errors="replace"))

    def note(self, line: str) -> None:
        self.say(stamped(line))

    def say(self, line: str) -> None:
        print(f"client {self.id} | {line}", flush=True)


def _relay(clients: list[_Client]) -> None:
    """Print the clients' output, waiting at most a tick."""
    with selectors.PollSelector() as ready:  # supports descriptors above 1023, and uses none itself
        for client in clients:
            if client.writes:
                ready.register(client, selectors.EVENT_READ, client)
        for key, _ in ready.select(TICK):
            key.data.relay()


def _stop(clients: list[_Client], signals: list[int]) -> None:
    """Forward the first signal, and wait for the clients to end."""
    deadline = time.monotonic() + GRACE
    names = ", ".join(str(client.id) for client in clients if client.running())
    for client in clients:
        client.signal(signals[0])
    if names:
        say(f"waiting up to {GRACE:g} s for clients to end: {names}; a second signal kills them")
    while any(client.running() for client in clients) and time.monotonic() < deadline and len(signals) < 2:
        _relay(clients)
    for client in clients:
        if client.running():
            client.note("did not end in time: killed")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield the list of SIGTERM and SIGINT received, in order."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with(parent: int) -> Callable[[], None] | None:
    """Return a function for a new process, which makes the kernel kill it when `parent` ends, even by kill -9."""
    if _LIBC is None:
        return None

    def bind() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(1)

    return bind
