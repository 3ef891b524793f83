"""Connections that end before their first call: where they came from and why they ended, as far as that can be known.

gRPC does not report a TLS handshake that failed. It does ask for certificates before each one: then this process's own
file descriptors show where the connection comes from. Why a handshake failed is only in gRPC's own log: see
`fedshare.transport.stream.grpc_log`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from fedshare.transport.stream.callers import Peer

ENDED = "the connection ended before its first call"
UNKNOWN = f"{ENDED}: no TLS, no certificate, one of another authority, or an expired one?"
_SHARE = 10  # looking for connections takes at most a tenth of a processor
_KEEP = 2.0  # seconds for which a reason waits for its connection
_ALONE = 0.5  # seconds after which a reason is reported without its connection
_HELD = 1000  # connections, and reasons, that are remembered


class Handshakes:
    """Connections whose handshake has begun and that have made no call. `found` returns all connections."""

    def __init__(self, found: Callable[[], set[Peer]], say: Callable[[Peer | None, str], None]) -> None:
        self._found, self._say = found, say
        self._lock = threading.Lock()
        self._pending = dict[Peer, None]()  # those without a call, in the order in which they came
        self._spoken = set[Peer]()  # those with one, also if they have ended since the last look
        self._unseen = 0  # handshakes that began when there was no time to look
        self._next = 0.0  # when there is time to look again
        self._changed = False  # whether `_spoken` has, since the last look
        self.informed = False  # whether `failed` is called when a handshake has
        self._reasons = deque[tuple[float, str]](maxlen=_HELD)

    def begins(self) -> None:
        """Note that a handshake begins. In any thread."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                self._unseen += 1
                return
            for peer in self._look() - self._spoken:
                if len(self._pending) < _HELD:
                    self._pending[peer] = None
            self._next = time.monotonic() + _SHARE * (time.monotonic() - now)

    def speaks(self, peer: Peer) -> None:
        """Note that the caller at `peer` has made a call: its handshake is over."""
        with self._lock:
            self._pending.pop(peer, None)
            self._spoken.add(peer)
            self._changed = True

    def failed(self, reason: str) -> None:
        """Note why a handshake failed; gRPC does not say which one."""
        with self._lock:
            self._reasons.append((time.monotonic(), reason))

    def sweep(self) -> None:
        """Report the connections that have ended without a call."""
        with self._lock:
            if not (self._pending or self._unseen or self._reasons or self._changed):
                return
            there, now = self._look(), time.monotonic()
            ended = [peer for peer in self._pending if peer not in there]
            self._spoken &= there
            self._changed = False
            for peer in ended:
                del self._pending[peer]
            self._reasons = deque((one for one in self._reasons if now - one[0] < _KEEP), maxlen=_HELD)
            reasons = [reason for _, reason in self._reasons]
            unseen, self._unseen = self._unseen, 0
            # A handshake may fail behind the sweep that counted it among those not seen.
            alone = not ended and any(now - at > _ALONE for at, _ in self._reasons)
            if ended or unseen or alone:
                self._reasons.clear()
        for peer in ended:
            self._say(peer, self._why(reasons, len(ended)))
        if alone or (unseen and len(reasons) > len(ended)):  # most of those not seen may be clients that were let in
            self._say(None, self._why(reasons, len(reasons)))

    def _why(self, reasons: list[str], ended: int) -> str:
        """The reason for each of `ended` connections that ended at the same time; which had which is not known."""
        if not self.informed:
            return UNKNOWN
        failed = f"the TLS handshake failed: {' or '.join(dict.fromkeys(reasons))}"
        return " or ".join([*[failed] * bool(reasons), *[ENDED] * (len(reasons) < ended)])

    def _look(self) -> set[Peer]:
        with suppress(OSError):
            return self._found()
        return set()
