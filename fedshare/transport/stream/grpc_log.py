"""Why TLS handshakes fail, which gRPC's core says on the standard error of its process and nowhere else.

What is read is a comfort: where its form changes with a version of gRPC, a refusal is logged without the reason.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fedshare.errors import brief

# What OpenSSL says, and what that means to an operator.
_MEANT = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it has no certificate"),
    ("certificate has expired", "its certificate has expired"),
    ("certificate is not yet valid", "its certificate is not valid yet: do the clocks differ?"),
    ("unable to get local issuer certificate", "another authority has signed its certificate"),
    ("self-signed certificate", "another authority has signed its certificate"),
    ("self signed certificate", "another authority has signed its certificate"),
    ("certificate signature failure", "another authority has signed its certificate"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not accepted"),
    ("HTTP_REQUEST", "it speaks no TLS"),
    ("WRONG_VERSION_NUMBER", "it speaks no TLS"),
    ("BAD_PACKET_LENGTH", "it broke the handshake off: does it not accept the server's certificate?"),
    ("UNSUPPORTED_PROTOCOL", "it speaks only older versions of TLS"),
    ("ALERT_UNKNOWN_CA", "it does not accept the server's certificate: of another authority, to it"),
    ("ALERT_CERTIFICATE_EXPIRED", "it does not accept the server's certificate: expired"),
    ("ALERT_BAD_CERTIFICATE", "it does not accept the server's certificate"),
    ("ALERT_CERTIFICATE_UNKNOWN", "it does not accept the server's certificate"),
)
_FAILED = re.compile(rb"Handshake failed with error [A-Z_]+: (.*)")
_reading = False
_ears: list[Callable[[str], None]] = []  # of this process, as its standard error is


def meaning(said: str) -> str:
    """Of what gRPC's log says of a handshake that failed."""
    return next((means for sign, means in _MEANT if sign in said), brief(said, 80))


def listen(hear: Callable[[str], None]) -> bool:
    """Tell `hear`, in another thread, why each handshake fails from now on; False where nobody reads the log."""
    _ears[:] = [hear]
    return _reading


@contextmanager
def captured() -> Iterator[None]:
    """Read what gRPC's core writes to the standard error, and hand on all the rest.

    To be entered before gRPC is imported. Python's own ``sys.stderr`` does not go this way. Where the user wants gRPC's
    log for himself, it is left alone.
    """
    global _reading
    verbosity = os.environ.get("GRPC_VERBOSITY", _NONE)
    if "grpc" in sys.modules or verbosity != _NONE or "GRPC_TRACE" in os.environ:
        yield
        return
    try:
        sys.stderr.flush()
        real = os.dup(2)
    except (OSError, AttributeError):  # there is none
        yield
        return
    reading, writing = os.pipe()
    before, own = sys.stderr, os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace")
    os.environ["GRPC_VERBOSITY"] = "INFO"  # at which it says why
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = own
    thread = threading.Thread(target=_pass_on, args=(reading, real), name="grpc-log", daemon=True)
    thread.start()
    _reading = True
    try:
        yield
    finally:
        _reading = False
        _ears.clear()
        sys.stderr = before
        os.dup2(real, 2)  # which ends the pipe, unless a child process still holds it
        os.environ["GRPC_VERBOSITY"] = verbosity
        thread.join(1.0)
        own.close()


def _pass_on(reading: int, real: int) -> None:
    """Other lines of gRPC's log are no operator's concern; all else is, to the byte."""
    rest = b""
    with os.fdopen(reading, "rb", buffering=0) as source:
        while data := source.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if match := _FAILED.search(line):
                    for hear in list(_ears):
                        hear(meaning(match[1].decode("utf-8", "replace")))
                elif not _OTHER.match(line):
                    _write(real, line + b"\n")
            if (rest and not rest.startswith((b"I", b"W", b"E"))) or len(rest) > 65536:
                _write(real, rest)
                rest = b""
    _write(real, rest)


_OTHER = re.compile(rb"[IWE][01]\d{3} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.-]+\.(cc|h):\d+\] ")  # of absl's form
_NONE = "NONE"  # what `fedshare.transport.stream` sets


def _write(real: int, data: bytes) -> None:
    with suppress(OSError):
        while data:
            data = data[os.write(real, data) :]
