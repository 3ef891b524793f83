"""The relay's end of its streams, in a thread of its own."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

from fedshare.errors import UserError
from fedshare.identity.admission import Admission
from fedshare.identity.identity import Identity
from fedshare.relay.commits import Commit, Head
from fedshare.relay.keeper import Keeper
from fedshare.relay.store import Store
from fedshare.transport.relay.host import Host
from fedshare.transport.stream import descriptors, tls
from fedshare.transport.stream.service import CLOSE_DEADLINE

RESERVE = 128  # file descriptors kept for files


class RelayServer:
    """Listens at `address` ("host:port"; port 0: any that is free) from `start` to `close`, for the keeper of a log.

    `reader` opens the log for reading only. `halted` is set with `error` when the log can no longer be written.
    """

    def __init__(
        self,
        address: str,
        identity: Identity | None,
        keeper: Keeper,
        reader: Callable[[], Store],
        admission: Admission | None = None,
        version: str = "",
        heartbeat: float = 10.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.address, self.keeper = address, keeper
        self.halted, self.error = threading.Event(), ""
        self._reader = reader
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        renewed = tls.Renewed(identity, say) if identity else None
        self.host = Host(self._loop, renewed, keeper, admission or Admission(), version, heartbeat, say, self.post)
        self._posted = deque[Callable[[], None]]()
        self._notified = False
        keeper.on_commit, keeper.on_trouble, keeper.on_halt = self._on_commit, self._on_trouble, self._on_halt

    def start(self) -> None:
        """Raises UserError where the address cannot be had, or file descriptors are too few."""
        try:
            room = descriptors.room(0, RESERVE)
        except UserError:
            self._loop.close()
            raise
        self._thread.start()
        made = self.host.listen(self.address, room, self._reader())
        try:
            port = asyncio.run_coroutine_threadsafe(made, self._loop).result(30)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        self.keeper.start()

    def close(self) -> None:
        """Store what was taken, and hang up; peers come back when there is a relay again."""
        if self._loop.is_running():
            self.keeper.close()
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self.host.close(), self._loop).result(3 * CLOSE_DEADLINE)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_DEADLINE)
            self._loop.close()

    def post(self, act: Callable[[], None]) -> None:
        """Call `act` in the loop's thread. In any thread."""
        self._posted.append(act)
        if not self._notified:  # once for many: each time costs a system call, and a change of threads
            self._notified = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._run_posted)

    def _run_posted(self) -> None:
        self._notified = False  # first: whoever posts from now on notifies again
        while self._posted:
            self._posted.popleft()()

    def _on_commit(self, commit: Commit, head: Head) -> None:
        self.post(lambda: self.host.committed(commit, head))

    def _on_trouble(self, why: str | None) -> None:
        self.post(lambda: self.host.trouble(why))

    def _on_halt(self, error: BaseException) -> None:
        self.error = str(error) or type(error).__name__
        self.post(lambda: self.host.trouble(self.error))
        self.halted.set()
