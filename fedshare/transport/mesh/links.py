"""The links of one peer, for its user in any thread: a `fedshare.peers.mesh.Mesh` over gRPC."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fedshare._proto.mesh_pb2 import Meeting
from fedshare.errors import UserError
from fedshare.identity.admission import Admission
from fedshare.identity.identity import Identity
from fedshare.identity.signing import Signer
from fedshare.machine.failpoints import failpoint
from fedshare.machine.tally import Tally
from fedshare.transport.mesh.agreement import Agreement
from fedshare.transport.mesh.circle import Circle
from fedshare.transport.mesh.door import Listener
from fedshare.transport.mesh.events import Events
from fedshare.transport.mesh.node import Node
from fedshare.transport.mesh.roster import Roster
from fedshare.transport.mesh.settings import Settings
from fedshare.transport.mesh.spool import Spool
from fedshare.transport.stream import tls
from fedshare.transport.stream.diagnose import split
from fedshare.transport.stream.frames import parse

DEADLINE = 30.0  # seconds to begin to listen, and to hang up
_ANY = ("0.0.0.0", "::", "")

R = TypeVar("R")


class MeshLinks:
    """Listens at `listen` ("HOST:PORT"; port 0: any that is free) from the first `enter` to `leave` or `close`.

    `addresses` are those of other peers that are known, by number; `neighbours` the peers with whom links are held;
    `spool` is a folder for what this peer says, for this peer and run alone. Without an `identity` there is no TLS.
    `known` are addresses of peers, whoever they are, that are asked for those of the others. Others reach this peer at
    `advertise`, or else at its address in `addresses`, or at `listen`.
    """

    def __init__(
        self,
        me: int,
        listen: str,
        addresses: Mapping[int, str],
        neighbours: Collection[int],
        settings: Settings,
        identity: Identity | None,
        signer: Signer,
        spool: Path,
        advertise: str | None = None,
        events: Path | None = None,
        admission: Admission | None = None,
        known: Collection[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        if identity and identity.client_id != me:
            raise UserError(f"peer {me} cannot show the certificate of {identity.who}")
        self.address = listen
        self.settings = settings
        self._me, self._advertise, self._say = me, advertise or addresses.get(me), say
        self._spool = Spool(spool, settings.run, me)
        self._events = Events(me, events)
        self._agreement = Agreement(me, set(neighbours) - {me})
        renewed = tls.Renewed(identity, say) if identity else None
        tally = Tally(say, settings.quiet)
        warn = lambda line: tally.say("addresses", line)  # noqa: E731
        self._roster = Roster(me, settings.run, settings.peers, identity, signer, addresses, warn)
        folder = identity.folder if identity else None
        admitted = admission or Admission.of(folder, None, None, say)
        self._circle = Circle(self._agreement, settings, renewed, self._roster, self._events, tally, admitted, known)
        self._node = Node(self._agreement, self._circle, settings, self._events, tally)
        self._listener = Listener(settings, renewed, tally, self._circle, self._circle.serve, self._meet, self._status)
        self._closing = threading.Lock()
        self._calls = set[Future[Any]]()
        self._began, self._seconds = 0.0, 0.0  # when the last round was begun, and what the one before took
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mesh", daemon=True)

    # As a Mesh.

    def enter(self, round: int) -> int:
        asked = round
        if not self._thread.ident:
            round = self._start(round)
        began = time.monotonic()
        entered, links = self._call(self._node.enter(round))
        if self._began:
            self._seconds = began - self._began
        self._began = began
        self._spool.begin(entered, asked, links)
        return entered

    def open(self) -> frozenset[int]:
        return frozenset(self._call(self._opened()))

    def fresh(self) -> frozenset[int]:
        return self._agreement.fresh()

    def swap(self, step: int, messages: Mapping[int, bytes], awaited: Collection[int]) -> dict[int, bytes]:
        last = self._spool.last
        if last is None:
            raise ValueError("a round must be entered first")
        if step in last.steps:
            said: Mapping[int, bytes] = last.steps[step]
        else:
            open_ = self._call(self._opened())
            for closed in last.links.keys() - open_:
                self._spool.close(closed)
            said = {peer: data for peer, data in messages.items() if peer in open_}
            failpoint("mesh.before-spool")
            self._spool.say(step, said)
            failpoint("mesh.after-spool")
        found = self._call(self._node.swap(step, said, awaited))
        failpoint("mesh.mid-round")
        return found

    def verifier(self, peer: int) -> bytes | None:
        return self._roster.key(peer)

    def leave(self) -> None:
        if self._thread.ident and self._agreement.begun:
            self._call(self._node.leave())
            self._spool.clear()
        self.close()

    # Beside that.

    @property
    def entered(self) -> int:
        """The round that was entered last; 0 before any."""
        return self._agreement.entered

    def close(self) -> None:
        """Hang up without a word: the neighbours wait for this peer to come back."""
        for call in list(self._calls):  # of other threads
            call.cancel()
        with self._closing:
            if self._loop.is_running():
                with suppress(TimeoutError, CancelledError):
                    asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(DEADLINE)
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(DEADLINE)
            if not self._loop.is_running():
                self._loop.close()
            self._spool.release()

    def events(self) -> list[dict[str, int | str]]:
        """Who joined, left, crashed and came back, as this peer saw it; see docs/links.md."""
        return list(self._events.all)

    def traffic(self) -> dict[int, tuple[int, int]]:
        """The bytes sent to and received from each neighbour, in frames."""
        return {peer: (one.sent, one.received) for peer, one in self._circle.traffic.items()}

    def _call(self, coroutine: Coroutine[Any, Any, R]) -> R:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._calls.add(future)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            self._calls.discard(future)

    def _start(self, round: int) -> int:
        """Listen, and go on where this peer was, or join; return the round to enter."""
        last = self._spool.last
        resuming = last and last.links and round in (last.asked, last.number + 1)
        if last and resuming:  # before anybody is greeted
            round = last.number if round == last.asked else round
            self._node.restore(last, self._spool.said(), round)
        else:
            self._agreement.join(round)
        self._thread.start()
        port = self._call(self._listener.listen(self.address))
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        self._roster.announce(self._advertise or _reachable(self.address))
        self._call(self._circle.start(self._listener))
        if last and resuming and self._call(self._node.reunite(last)):
            return round
        if last:
            self._say(f"peer {self._me} joins as a new one: its links of round {last.number} are not open any more")
            self._spool.clear()
        self._call(self._node.join(round))
        return round

    async def _opened(self) -> set[int]:
        return self._node.open()

    async def _hang_up(self) -> None:
        await self._circle.close()
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:  # gRPC's own
            await asyncio.wait(rest, timeout=1.0)
        await asyncio.sleep(0.05)  # gRPC's poller may still hold events for this loop

    # Requests.

    def _meet(self, request: bytes) -> bytes:
        meeting = parse(Meeting, request)
        if meeting.run != self.settings.run:
            raise UserError(f"this peer's run is {self.settings.run.hex()[:12]}, another than is asked for")
        self._circle.learn(meeting)
        answer = Meeting(run=self.settings.run)
        for some in self._roster.all():
            answer.peers.extend(some.peers)
        return answer.SerializeToString()

    def _status(self, request: bytes) -> bytes:
        return self._circle.state(self._seconds).told().SerializeToString()


def _reachable(address: str) -> str:
    """`address`, or this host's name instead of "any"."""
    host, port = split(address)
    return f"{socket.gethostname()}:{port}" if host in _ANY else address
