"""A relay in the thread of its event loop: it listens, lets peers in, and sends them what is committed."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedshare._proto.relay_pb2 import PeerHello, PeerUp, RelayDown, RelayWelcome, StatusSaid
from fedshare.errors import NAME, UserError, brief
from fedshare.identity.admission import Admission
from fedshare.identity.certificates import signing_key_of
from fedshare.identity.signing import PUBLIC, RUN
from fedshare.machine.tally import Tally
from fedshare.relay.commits import Commit, Head
from fedshare.relay.entries import MOST_PEERS
from fedshare.relay.keeper import Keeper
from fedshare.relay.sequencer import Status, Verdict
from fedshare.relay.store import Store
from fedshare.transport.relay.protocol import CONNECT, FETCH, PROTOCOL, SERVICE, STATUS, STORE
from fedshare.transport.relay.session import Session
from fedshare.transport.relay.snapshots import Snapshots
from fedshare.transport.relay.state import described, offered
from fedshare.transport.relay.tail import Tail
from fedshare.transport.stream import callers, tls
from fedshare.transport.stream.frames import FrameError, greeting
from fedshare.transport.stream.newcomers import Newcomers
from fedshare.transport.stream.service import CLOSE_DEADLINE, Door, Health, first_frame

CALLERS = 64  # connections of one address without a greeting
EVERY = 10.0  # seconds between two lines about who is waited for


class Host:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        identity: tls.Renewed | None,
        keeper: Keeper,
        admission: Admission,
        version: str,
        heartbeat: float,
        say: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._loop, self._identity, self._keeper, self._admission = loop, identity, keeper, admission
        self._version, self._heartbeat, self._say, self._post = version, heartbeat, say, post
        self.sessions: dict[int, Session] = {}
        self.refused = 0
        self._tally = Tally(say)
        self._newcomers = Newcomers(identity is not None, self._tally)
        self._health = Health(self._newcomers.speaks)
        self._rounds = 0 if keeper.last is None else keeper.last.round + 1  # commits of the log
        self._head = keeper.last
        self._since = time.monotonic()  # when the last commit was made
        self._round_time = 0.0
        self._closing = False
        self._server: grpc.aio.Server

    async def listen(self, address: str, room: int, reader: Store) -> int:
        """Returns the port. Raises UserError."""
        self._tail = Tail(reader)
        self._snapshots = Snapshots(self._keeper, self._tail, self._who)
        self._server = server = grpc.aio.server(options=tls.server_options(self._heartbeat, room))
        methods = {
            CONNECT: grpc.stream_stream_rpc_method_handler(self._connect),
            FETCH: grpc.unary_stream_rpc_method_handler(self._snapshots.fetch),
            STORE: grpc.stream_unary_rpc_method_handler(self._snapshots.store),
            STATUS: grpc.unary_unary_rpc_method_handler(self._status),
        }
        server.add_generic_rpc_handlers((Door(methods),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = tls.listen(server, address, self._identity, self._newcomers.begins)
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._newcomers.watch(port, 0, CALLERS, room)
        self._newcomers.explain()
        self._remind()
        return port

    async def close(self) -> None:
        self._closing = True
        self._newcomers.close()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(0.2)
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest, timeout=CLOSE_DEADLINE)
        self._tail.close()
        await asyncio.sleep(0.05)  # gRPC's poller may still hold events for this loop

    # Called by the keeper, in this thread.

    def committed(self, commit: Commit, head: Head) -> None:
        self._tail.put(commit, head)
        self._rounds, self._head = commit.round + 1, head
        now = time.monotonic()
        self._round_time, self._since = now - self._since, now
        for session in self.sessions.values():
            session.wake()

    def trouble(self, why: str | None) -> None:
        """Say that nothing is taken, and why; or that it is again."""
        self._say(f"nothing is taken: {why}" if why else "messages are taken again")
        serving = health_pb2.HealthCheckResponse
        self._setting = self._loop.create_task(
            self._health.set(SERVICE, serving.NOT_SERVING if why else serving.SERVING)
        )

    def expel(self, peer: int, reason: str) -> None:
        if session := self.sessions.get(peer):
            session.refuse(reason)

    # Calls.

    async def _connect(self, _: object, context: grpc.aio.ServicerContext) -> None:
        self._newcomers.speaks(context)
        try:
            hello = greeting(PeerUp, await first_frame(context)).hello
            certificate = self._let_in(hello, context)
            await self._admitted(hello, certificate)
            with self._newcomers.greeted(context):
                await self._serve(hello, context)
        except FrameError as error:
            self._refuse(context, f"it sent {error}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{context.peer()} sent {error}")
        except _NotNow as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, brief(str(error)))
        except UserError as error:
            self._refuse(context, str(error))
            await context.write(RelayDown(refusal=brief(str(error))).SerializeToString())

    def _let_in(self, hello: PeerHello, context: grpc.aio.ServicerContext) -> bytes:
        """Return the caller's certificate; empty without TLS. Raises UserError."""
        who = f"peer {hello.peer} was refused"
        if len(hello.run) != RUN or len(hello.key) != PUBLIC or len(hello.nonce) != 32 or hello.peer >= MOST_PEERS:
            raise FrameError("a greeting with a peer, a run, a key or a nonce out of range")
        if hello.protocol != PROTOCOL or (self._version and hello.version != self._version):
            theirs = f"fedshare {brief(hello.version, NAME)} (relay {hello.protocol})"
            raise UserError(f"{who}: it runs {theirs}, the relay fedshare {self._version} (relay {PROTOCOL})")
        pem = tls.shown(context)
        if pem is None:
            return b""
        if (named := tls.certified(context)) != hello.peer:
            raise UserError(f"{who}: its certificate is peer {named}'s, but it says that it is peer {hello.peer}")
        if (key := signing_key_of(pem)) != hello.key:
            other = "names no signing key" if key is None else "names another signing key"
            raise UserError(f"{who}: its certificate {other}: `fedshare keys DIR --peers N` makes one that does")
        self._admission.refresh()
        if reason := self._admission.objection(hello.peer, pem):
            raise UserError(f"{who}: {reason}")
        return pem

    async def _admitted(self, hello: PeerHello, certificate: bytes) -> None:
        """Wait until the peer's admission is on disk. Raises UserError."""
        verdict: asyncio.Future[Verdict] = self._loop.create_future()

        def done(found: Verdict) -> None:
            self._post(lambda: None if verdict.done() else verdict.set_result(found))

        self._keeper.admit(hello.run, hello.peer, hello.key, certificate, done)
        found = await verdict
        if found.status is Status.REFUSED:
            raise UserError(f"peer {hello.peer} was refused: {found.why}")
        if found.status is Status.FULL:
            raise _NotNow(found.why)

    async def _serve(self, hello: PeerHello, context: grpc.aio.ServicerContext) -> None:
        session = Session(hello.peer, context, self._keeper, self._tail, hello.known, lambda: self._rounds)
        session.post = self._post
        if before := self.sessions.get(hello.peer):  # its connection is dead, and nobody has noticed
            before.refuse("it has connected again from elsewhere")
        self.sessions[hello.peer] = session
        try:
            await context.write(RelayDown(welcome=await self._welcome(hello)).SerializeToString())
            session.rounds = min(session.rounds, self._rounds)
            session.wake()
            tasks = [asyncio.create_task(session.read()), asyncio.create_task(session.write())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=CLOSE_DEADLINE)
        finally:
            if self.sessions.get(hello.peer) is session:
                del self.sessions[hello.peer]

    async def _welcome(self, hello: PeerHello) -> RelayWelcome:
        known = await self._tail.head(hello.seen - 1) if 0 < hello.seen <= 2**63 - 1 else None
        said = await self._tail.read(lambda store: store.noted(hello.peer))
        rounds, head = self._rounds, self._head.head if self._head else bytes(32)
        welcome = RelayWelcome(
            key=self._keeper.public,
            rounds=rounds,
            head=head,
            status=self._keeper.status(rounds, head, hello.nonce),
            said=said,
            message=self._keeper.settings.message,
        )
        if known is not None:
            welcome.known, welcome.known_signed = known.head, known.signature
        return welcome

    def _who(self, context: grpc.aio.ServicerContext) -> int | None:
        """Return who calls, by its certificate; -1 without TLS; None if it was removed."""
        self._newcomers.speaks(context)
        pem = tls.shown(context)
        if pem is None:
            return -1
        peer = tls.certified(context)
        member = self._keeper.sequencer.members.all.get(-1 if peer is None else peer)
        return None if peer is None or (member and member.removed) else peer

    async def _status(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self._newcomers.speaks(context)
        context.set_trailing_metadata((("time", f"{time.time():.3f}"),))
        snapshots = await self._tail.read(offered)
        return StatusSaid(json=json.dumps(self.status() | {"snapshots": snapshots})).SerializeToString()

    def status(self) -> dict[str, Any]:
        """Return who is there, for `fedshare peers` and metrics."""
        log = {"version": self._version, "run": self._keeper.run.hex(), "rounds": self._rounds}
        times = {"round_seconds": self._round_time, "since_seconds": time.monotonic() - self._since}
        log["head"] = self._head.head.hex() if self._head else ""
        return log | described(self._keeper.sequencer, self.sessions, self._rounds, times)

    # Now and then.

    def _refuse(self, context: grpc.aio.ServicerContext, reason: str) -> None:
        place = callers.place_of(context.peer())
        self.refused += 1
        self._tally.say(place, f"{place}: {reason}")

    def _remind(self) -> None:
        """Say for whom a round waits."""
        if self._closing:
            return
        if time.monotonic() - self._since > EVERY:
            text = self._keeper.sequencer.waits_for()
            self._tally.say("round", text)
            for session in self.sessions.values():
                session.waits(text)
        self._loop.call_later(EVERY, self._remind)


class _NotNow(Exception):
    """The log takes nothing for now. The message says why."""
