"""A local socket by which one user's commands reach his running server: a line of JSON each way.

The socket has mode 0600, and the kernel says who is at its other end: this user, or root.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedshare.errors import UserError, first_line

NAME = "admin.sock"  # in the folder of a run
DEADLINE = 5.0  # seconds for a request to arrive, or an answer to leave
ANSWER_DEADLINE = 30.0  # seconds to wait for an answer: what is done is on a disk by then
REQUEST_LIMIT, ANSWER_LIMIT = 4096, 1 << 24  # bytes
_LONGEST = 100  # bytes of a socket's path; the system takes 108, or 104

Answer = Callable[[dict[str, Any], int], dict[str, Any]]  # to a request of the user with this number


class Control:
    """Answers requests at `path` from the moment it is made until `close`. `answer` raises UserError for a bad one.

    Raises UserError where another process answers there, OSError where no socket can be had.
    """

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path, self._answer = path, answer
        self._clear()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(self._socket.fileno(), 0o600)  # on Linux it is made with this mode: nobody is ever early
            with _short(path) as name:
                self._socket.bind(name)
            path.chmod(0o600)
            self._inode = path.stat().st_ino
            self._socket.listen(8)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which wakes the thread
        self._socket.close()
        self._thread.join(DEADLINE)

    def _clear(self) -> None:
        """Remove the socket that a killed process has left."""
        if not self.path.is_socket():
            if self.path.exists():
                raise UserError(f"{self.path}: is no socket: move it away")
            return
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            _connected(self.path).close()
            raise UserError(f"{self.path}: another process is running this run")
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED):
                    time.sleep(0.1)
                    continue
                return  # closed
            with caller, contextlib.suppress(OSError):  # whoever hung up needs no answer
                self._converse(caller)

    def _converse(self, caller: socket.socket) -> None:
        user = _user(caller)
        if user not in (os.geteuid(), 0):
            reply: dict[str, Any] = {"error": "another user runs this server"}
        else:
            try:
                request = json.loads(_line(caller, REQUEST_LIMIT, DEADLINE))
                if not isinstance(request, dict):
                    raise ValueError("a request is an object")
                reply = self._answer(request, user)
            except (UserError, ValueError, RecursionError) as error:
                reply = {"error": first_line(error)}
            except Exception as error:  # an operator's command ends no run
                reply = {"error": f"{type(error).__name__}: {first_line(error)}"}
        caller.settimeout(DEADLINE)
        caller.sendall(json.dumps(reply).encode() + b"\n")


def listens(path: Path) -> bool:
    """Whether a process does, busy or not."""
    try:
        _connected(path).close()
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What the server at `path` answers. Raises UserError where it refuses, or none is there."""
    line = json.dumps(request).encode() + b"\n"
    if len(line) > REQUEST_LIMIT:
        raise UserError(f"the command has {len(line)} bytes; at most {REQUEST_LIMIT} are taken")
    try:
        with _connected(path) as server:
            server.settimeout(DEADLINE)
            with contextlib.suppress(
                BrokenPipeError
            ):  # a server that refuses this user has answered, and reads nothing
                server.sendall(line)
            found = json.loads(_line(server, ANSWER_LIMIT, ANSWER_DEADLINE))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise UserError(f"{path}: no server is running there") from None
    except PermissionError:
        raise UserError(f"{path}: only the user who runs the server may command it") from None
    except TimeoutError:
        raise UserError(f"{path}: the server has not answered in {ANSWER_DEADLINE:g} s") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or first_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: what answers there is no server of ours")
    if "error" in found:
        raise UserError(str(found["error"]))
    return found


def _line(one: socket.socket, most: int, deadline: float) -> bytes:
    """What comes up to the end of the first line. Raises ValueError, and TimeoutError."""
    until, data = time.monotonic() + deadline, bytearray()
    while b"\n" not in data:
        one.settimeout(max(0.001, until - time.monotonic()))
        if not (more := one.recv(65536)):
            raise ValueError("the line is cut short")
        data += more
        if len(data) > most:
            raise ValueError(f"more than {most} bytes")
        if time.monotonic() >= until:
            raise TimeoutError
    return bytes(data[: data.index(b"\n")])


def _connected(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.settimeout(DEADLINE)
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise ValueError("is no socket")
        with _short(path) as name:
            one.connect(name)
    except BaseException:
        one.close()
        raise
    return one


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of `path` that is short enough for a socket. Raises OSError where there is none."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not os.path.isdir(f"/proc/self/fd/{folder}"):
            raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {_LONGEST} bytes here", str(path))
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _user(caller: socket.socket) -> int:
    """The user at the other end; where the system does not say, the socket's mode let nobody else in."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.geteuid()
    credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
