"""The stream between a server and its clients: whatever network, host or caller do, each message is answered once."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from fedshare._proto.stream_pb2 import Chunk, Down, Hello, Leave, Up
from fedshare.errors import RunHalted, UserError
from fedshare.identity import certificates, keys
from fedshare.identity.identity import Identity
from fedshare.transport.stream import frames, service, tls
from fedshare.transport.stream import line as line_module
from fedshare.transport.stream.client import StreamClient
from fedshare.transport.stream.diagnose import NotYet
from fedshare.transport.stream.frames import CHUNK, PROTOCOL, Assembly, chunks
from fedshare.transport.stream.mailbox import Response
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.service import METHOD, SERVICE
from fedshare.transport.stream.settings import Settings
from proxy import DOWN, UP, Proxy
from world import PATIENCE

HEARTBEAT = 5.0  # of two without a word a connection dies: longer than a busy machine keeps a process waiting
LOCAL = "127.0.0.1:0"
Reply = Callable[[bytearray], Sequence[frames.Buffer]]
GUESTS: list["Guest"] = []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(line_module, "LONGEST_PAUSE", 0.2)


@pytest.fixture(autouse=True)
def _gone() -> Iterator[None]:
    """None of a test's clients seeks its server any longer, or it would find another test's at the same port."""
    yield
    while GUESTS:
        GUESTS.pop().leave()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities that know nothing of each other, and certificates of the first that have expired."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("ours", "other"):
        keys.make(folder / name, ["localhost"], clients=2, days=30)
    shutil.copytree(folder / "ours", folder / "old")
    for path in (folder / "old").glob("*-?/client.crt"):
        path.unlink()
    (folder / "old" / "server" / "server.crt").unlink()
    now = certificates.now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "now", lambda: now - timedelta(days=60))
        patch.setattr(certificates, "require_current", lambda *_: None)
        keys.make(folder / "old", ["localhost"], clients=2, days=30)
    return folder


def identity(pki: Path, place: str) -> Identity:
    """As it lies there: what is wrong with it is for the other end to find."""
    folder = pki / place
    role = folder.name.partition("-")[0]
    return Identity(*((folder / name).read_bytes() for name in ("ca.crt", f"{role}.crt", f"{role}.key")))


@contextlib.contextmanager
def serving(identity: Identity | None = None, address: str = LOCAL, **settings: Any) -> Iterator[StreamServer]:
    given = {"version": "1", "heartbeat": HEARTBEAT, "grace": PATIENCE, **settings}
    say = given.pop("say", print)
    listening = StreamServer(address, identity, Settings(**given), say)
    listening.start()
    try:
        yield listening
    finally:
        listening.close("")


def port(server: StreamServer) -> int:
    return int(server.address.rpartition(":")[2])


class Guest:
    """A client in a thread, which notes what it was asked."""

    def __init__(
        self, address: str, id: int = 0, identity: Identity | None = None, answer: Reply | None = None, **more: Any
    ):
        self.asked: list[bytes] = []
        self.said: list[str] = []
        self.error: BaseException | None = None
        self.welcomed: Any = None
        given = {"version": "1", "patience": PATIENCE, "heartbeat": HEARTBEAT, "say": self.said.append, **more}
        self.client = StreamClient(address, id, identity, **given)
        self._answer = answer or (lambda body: [b"re ", body])
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()
        GUESTS.append(self)

    def _live(self) -> None:
        try:
            self.client.run(self._prepare)
        except BaseException as error:
            self.error = error

    def _prepare(self, welcomed: Any) -> Reply:
        self.welcomed = welcomed
        return self._run

    def _run(self, body: bytearray) -> Sequence[frames.Buffer]:
        self.asked.append(bytes(body))
        return self._answer(body)

    def end(self) -> BaseException | None:
        """Wait until it has ended by itself."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), self.said[-3:]
        return self.error

    def leave(self) -> None:
        self.client.close()
        self.end()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:g} s until {what}"
        time.sleep(0.01)


def until_present(server: StreamServer, *ids: int) -> None:
    wait_until(lambda: server.present() == list(ids), f"{list(ids)} are there, and not {server.present()}")


def until_known(server: StreamServer, id: int, **state: Any) -> None:
    """Until the server knows that a client is connected, or that its connection has ended."""
    connected = state["connected"]
    wait_until(
        lambda: (server.members.by_id[id].connection is not None) == connected, f"client {id} connected: {connected}"
    )


def receive(server: StreamServer, count: int, seconds: float = PATIENCE) -> list[Response]:
    answers: list[Response] = []
    until = time.monotonic() + seconds
    while len(answers) < count:
        assert time.monotonic() < until, f"{len(answers)} of {count} answers in {seconds:g} s"
        answers += server.receive(0.5)
    return answers


def ask(server: StreamServer, id: int, body: bytes) -> bytes:
    ticket = server.send(id, [body])
    (answer,) = receive(server, 1)
    assert (answer.ticket, answer.client, answer.reason) == (ticket, id, "")
    assert answer.body is not None
    return bytes(answer.body)


# Messages.


def test_each_answer_has_the_ticket_of_its_message() -> None:
    with serving(clients=4, config='{"text": "x"}') as server:
        guests = [Guest(server.address, id) for id in range(4)]
        until_present(server, 0, 1, 2, 3)
        sent = {server.send(n % 4, [b"message ", str(n).encode()]): n for n in range(400)}
        answers = receive(server, 400)
        assert {a.ticket: (a.client, a.body) for a in answers} == {
            ticket: (n % 4, b"re message %d" % n) for ticket, n in sent.items()
        }
        assert [guest.asked for guest in guests] == [[b"message %d" % n for n in range(id, 400, 4)] for id in range(4)]
        assert (guests[0].welcomed.config, guests[0].welcomed.clients) == ({"text": "x"}, 4)
        server.close("")
        assert [guest.end() for guest in guests] == [None] * 4


def test_a_run_that_ended_badly_says_why() -> None:
    with serving() as server:
        guest = Guest(server.address)
        until_present(server, 0)
        server.close("round 3: no client left")
        assert isinstance(error := guest.end(), RunHalted)
        assert str(error) == "the run halted: round 3: no client left"


def test_a_message_beyond_any_limit_of_grpc_passes_both_ways(pki: Path) -> None:
    body = random.Random(0).randbytes(20_000_003)
    with serving(identity(pki, "ours/server")) as server:
        Guest(server.address, 0, identity(pki, "ours/client-0"), lambda body: [body[:7], body[7:], b"end"])
        until_present(server, 0)
        assert ask(server, 0, body) == body + b"end"


def test_a_message_is_never_copied_as_a_whole() -> None:
    buffers = [bytes(10 * CHUNK), b"x" * 5, bytes(20 * CHUNK + 1)]
    tracemalloc.start()
    try:
        sizes = [len(chunk.data) for chunk in chunks(1, buffers)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes == [CHUNK] * 30 + [6]
    assert peak < 5 * CHUNK


@given(st.lists(st.binary(max_size=40), max_size=6).filter(any), st.integers(1, 20))
def test_any_message_is_put_together_again(buffers: list[bytes], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "CHUNK", size)
        pieces = list(chunks(3, buffers))
    assembly = Assembly()
    for begun in (pieces[:-1], pieces):  # cut off before its end, and sent again
        found = [assembly.add(piece) for piece in begun]
    assert found == [None] * (len(pieces) - 1) + [(3, bytearray(b"".join(buffers)))]


def test_an_empty_message_is_refused_where_it_is_made() -> None:
    with serving() as server:
        guest = Guest(server.address, answer=lambda body: [])
        until_present(server, 0)
        with pytest.raises(ValueError, match="an empty message"):
            server.send(0, [b"", b""])
        server.send(0, [b"x"])
        assert isinstance(guest.end(), ValueError)


# Each message is answered once.

Cut = Callable[[Proxy, random.Random], None]
BIG = 3_000_000
CUTS: dict[str, tuple[int, Cut, Cut]] = {  # bytes of a message and its answer; before it is sent; while it is worked on
    "between messages": (9, lambda proxy, r: proxy.cut(), lambda proxy, r: None),
    "on the way down": (BIG, lambda proxy, r: proxy.cut_after(DOWN, r.randrange(BIG)), lambda proxy, r: None),
    "on the way up": (BIG, lambda proxy, r: None, lambda proxy, r: proxy.cut_after(UP, r.randrange(BIG))),
    "at work": (9, lambda proxy, r: None, lambda proxy, r: proxy.cut()),
    "at the reply": (9, lambda proxy, r: None, lambda proxy, r: proxy.cut_after(UP, r.randrange(1, 60))),
}


@pytest.mark.parametrize(("size", "before", "during"), CUTS.values(), ids=CUTS)
def test_a_cut_neither_loses_nor_repeats_a_message(size: int, before: Cut, during: Cut) -> None:
    chance = random.Random(size)
    with serving() as server, Proxy(port(server)) as proxy:

        def answer(body: bytearray) -> Sequence[frames.Buffer]:
            during(proxy, chance)
            return [body[::-1]]

        guest = Guest(proxy.address, answer=answer)
        until_present(server, 0)
        bodies = [b"%08d" % n + bytes(size - 8) for n in range(12)]
        for body in bodies:
            before(proxy, chance)
            assert ask(server, 0, body) == body[::-1]
        assert guest.asked == bodies
        assert server.receive(0.1) == []
        assert proxy.cuts >= 5
        assert guest.error is None


def test_a_bad_network_neither_loses_nor_repeats_nor_changes_a_message(pki: Path) -> None:
    chance = random.Random(5)
    mishaps: list[Callable[[Proxy], None]] = [
        lambda proxy: proxy.cut(),
        lambda proxy: proxy.cut_after(chance.choice([UP, DOWN]), chance.randrange(1, BIG)),
        lambda proxy: proxy.spoil(chance.choice([UP, DOWN])),
        lambda proxy: setattr(proxy, "delay", chance.random() * 0.02),
        lambda proxy: setattr(proxy, "delay", 0.0),
    ]
    with serving(identity(pki, "ours/server"), heartbeat=1.0) as server, Proxy(port(server)) as proxy:
        guest = Guest(proxy.address, 0, identity(pki, "ours/client-0"), lambda body: [body[:8], body], heartbeat=1.0)
        until_present(server, 0)
        sent, answers, number = dict[int, bytes](), list[Response](), 0
        until = time.monotonic() + PATIENCE
        while number < 40 or proxy.cuts <= 5 or len(answers) < len(sent):
            if len(sent) - len(answers) < 3 and (number < 40 or proxy.cuts <= 5):
                body = b"%08d" % number + chance.randbytes(chance.choice([0, 1000, BIG // 8]))
                sent[server.send(0, [body])] = body
                number += 1
            if chance.random() < 0.2:
                chance.choice(mishaps)(proxy)
            answers += server.receive(0.05)
            assert time.monotonic() < until, (len(sent), len(answers), guest.said[-3:])
        assert {a.ticket: a.body for a in answers} == {ticket: body[:8] + body for ticket, body in sent.items()}
        assert len(answers) == len(sent)
        assert guest.asked == list(sent.values())
        assert proxy.cuts > 5


def test_a_message_that_arrived_though_its_sending_broke_off_is_not_sent_again() -> None:
    with serving() as server, Proxy(port(server)) as proxy:
        free = threading.Event()
        guest = Guest(proxy.address, answer=lambda body: [b"done"] if free.wait(PATIENCE) else [b"?"])
        until_present(server, 0)
        server.send(0, [b"work"])
        wait_until(lambda: bool(guest.asked), "it works")
        server.members.by_id[0].current.sent = False  # type: ignore[union-attr]  # as if the last write had failed
        proxy.cut()
        wait_until(lambda: any("again" in line for line in guest.said), "it is back")
        free.set()
        assert [answer.body for answer in receive(server, 1)] == [b"done"]
        assert ask(server, 0, b"more") == b"done"
        assert guest.asked == [b"work", b"more"]


@pytest.mark.long
def test_a_slow_link_is_no_dead_one() -> None:
    with serving() as server, Proxy(port(server)) as proxy:
        guest = Guest(proxy.address, answer=lambda body: [b"thanks"])
        until_present(server, 0)
        proxy.rate = 300_000
        message = bytes(4_000_000)
        assert len(message) / proxy.rate > 2 * HEARTBEAT
        assert ask(server, 0, message) == b"thanks"
        assert proxy.connections == 1
        assert guest.said == []


# Who is there.


def test_a_client_gone_longer_than_grace_is_absent_and_can_come_back() -> None:
    with serving(grace=0.4) as server, Proxy(port(server)) as proxy:
        free = threading.Event()
        guest = Guest(proxy.address, answer=lambda body: [body] if free.wait(PATIENCE) else [])
        until_present(server, 0)
        first, second = server.send(0, [b"1"]), server.send(0, [b"2"])
        wait_until(lambda: bool(guest.asked), "it works")
        proxy.hold()
        proxy.cut()
        answers = receive(server, 2)
        assert [(a.ticket, a.body, a.reason) for a in answers] == [
            (first, None, "gone since 0.4 s ago"),
            (second, None, "gone since 0.4 s ago"),
        ]
        assert server.present() == []
        third = server.send(0, [b"3"])
        assert receive(server, 1) == [Response(third, 0, None, "not connected")]
        proxy.release()
        until_present(server, 0)
        fourth = server.send(0, [b"4"])
        free.set()
        assert receive(server, 1) == [Response(fourth, 0, bytearray(b"4"))]
        assert guest.asked == [b"1", b"4"]


def test_a_cut_shorter_than_grace_is_no_absence() -> None:
    with serving() as server, Proxy(port(server)) as proxy:
        guest = Guest(proxy.address)
        until_present(server, 0)
        for _ in range(3):
            proxy.cut()
            until_known(server, 0, connected=False)
            assert server.present() == [0]
            ticket = server.send(0, [b"x"])
            assert [a.ticket for a in receive(server, 1)] == [ticket]
        assert len(guest.asked) == 3


def test_who_comes_late_takes_part_and_who_leaves_is_gone_at_once() -> None:
    with serving(grace=60.0) as server:
        stays = Guest(server.address, 0)
        until_present(server, 0)
        free = threading.Event()
        goes = Guest(server.address, 5, answer=lambda body: [body] if free.wait(PATIENCE) else [])
        until_present(server, 0, 5)
        ticket = server.send(5, [b"work"])
        wait_until(lambda: bool(goes.asked), "it works")
        goes.client.close()
        assert receive(server, 1) == [Response(ticket, 5, None, "it left")]
        assert server.present() == [0]
        assert ask(server, 0, b"x") == b"re x"
        free.set()
        assert goes.end() is None
        assert stays.error is None


def test_a_client_whose_work_raises_leaves() -> None:
    with serving(grace=60.0) as server:
        guest = Guest(server.address, answer=lambda body: [b"%d" % (1 // 0)])
        until_present(server, 0)
        ticket = server.send(0, [b"x"])
        assert receive(server, 1) == [Response(ticket, 0, None, "it left")]
        assert isinstance(guest.end(), ZeroDivisionError)


@pytest.mark.long
def test_silence_is_noticed_at_both_ends() -> None:
    with serving(grace=0.1, heartbeat=2.0) as server, Proxy(port(server)) as proxy:
        guest = Guest(proxy.address, heartbeat=2.0)
        until_present(server, 0)
        ticket = server.send(0, [b"x"])
        receive(server, 1)
        proxy.hold()
        ticket = server.send(0, [b"y"])
        assert receive(server, 1) == [Response(ticket, 0, None, "gone since 0.1 s ago")]
        wait_until(lambda: bool(guest.said), "the client has noticed")
        assert guest.said[0].endswith("the connection broke off")
        proxy.release()
        until_present(server, 0)
        assert ask(server, 0, b"z") == b"re z"


def test_a_slow_client_gets_only_the_newest_message() -> None:
    with serving() as server:
        free = threading.Event()
        guest = Guest(server.address, answer=lambda body: [body] if free.wait(PATIENCE) else [])
        until_present(server, 0)
        tickets = [server.send(0, [b"round 1"])]
        wait_until(lambda: bool(guest.asked), "it works")
        for n in range(2, 6):
            server.give_up({tickets[-1]})
            tickets.append(server.send(0, [b"round %d" % n]))
        free.set()
        assert receive(server, 1) == [Response(tickets[-1], 0, bytearray(b"round 5"))]
        assert guest.asked == [b"round 1", b"round 5"]
        assert server.receive(0.1) == []


def test_a_message_given_up_on_its_way_is_not_finished() -> None:
    with serving() as server, Proxy(port(server)) as proxy:
        guest = Guest(proxy.address, heartbeat=5.0)
        until_present(server, 0)
        proxy.rate = 2_000_000
        ticket = server.send(0, [bytes(200 << 20)])
        passed = proxy.passed[DOWN]
        wait_until(lambda: proxy.passed[DOWN] > passed, "it is on its way")
        server.give_up({ticket})
        newest = server.send(0, [b"newest"])
        proxy.rate = 0.0
        assert receive(server, 1) == [Response(newest, 0, bytearray(b"re newest"))]
        assert guest.asked == [b"newest"]


# A server that starts anew.


def test_an_answer_to_a_server_that_died_is_no_answer_to_the_next() -> None:
    free = threading.Event()
    with serving() as first, Proxy(port(first)) as proxy:
        guest = Guest(proxy.address, answer=lambda body: [b"re ", body] if free.wait(PATIENCE) else [])
        until_present(first, 0)
        first.send(0, [b"old 1"])
        wait_until(lambda: bool(guest.asked), "it works")
        with serving() as second:
            proxy.port = port(second)
            first.close(None)
            until_present(second, 0)
            ticket = second.send(0, [b"new 1"])  # it, too, is its client's message 1
            time.sleep(0.2)
            free.set()
            assert receive(second, 1) == [Response(ticket, 0, bytearray(b"re new 1"))]
            assert guest.asked == [b"old 1", b"new 1"]
            assert second.receive(0.1) == []
            second.close("")
            assert guest.end() is None


def test_a_client_returns_to_a_server_on_the_same_port() -> None:
    with serving() as first:
        guest = Guest(first.address)
        until_present(first, 0)
        assert ask(first, 0, b"a") == b"re a"
        address = first.address
        first.close(None)
    with serving(address=address) as second:
        until_present(second, 0)
        assert ask(second, 0, b"b") == b"re b"
    assert guest.end() is None
    assert f"connected to {address} again" in guest.said


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_server_that_stays_away_is_given_up() -> None:
    address = free_address()
    guest = Guest(address, patience=0.5)
    assert isinstance(error := guest.end(), NotYet)
    assert str(error) == f"{address}: nobody listens there; given up after 0.5 s"
    assert guest.said[0] == f"waiting for {address}, up to 0 s more: nobody listens there"


def test_a_server_that_comes_late_is_found() -> None:
    address = free_address()
    guest = Guest(address)
    wait_until(lambda: bool(guest.said), "it waits")
    with serving(address=address) as server:
        until_present(server, 0)
    assert guest.end() is None


def test_a_port_that_is_taken_is_said() -> None:
    with serving() as server, pytest.raises(UserError, match="cannot listen there: is the port taken"):
        StreamServer(server.address, None, Settings("1")).start()


# Callers that do not get in.


def test_the_older_of_two_with_one_identity_is_turned_away() -> None:
    with serving() as server:
        older = Guest(server.address)
        until_present(server, 0)
        newer = Guest(server.address)
        assert isinstance(error := older.end(), UserError)
        assert str(error) == f"{server.address}: another process has connected as client 0"
        assert ask(server, 0, b"x") == b"re x"
        assert newer.asked == [b"x"]


REFUSED_BY_TLS = {
    "another's certificate": (
        "ours/client-1",
        "client 1 was refused: its certificate is client 1's, but it says that it",
    ),
    "another authority's": (
        "other/client-0",
        "the server's certificate is not accepted: another authority than that of",
    ),
    "forged": ("forged", "the server does not accept this client's certificate: client.crt: was not signed by ca.crt"),
    "expired": (
        "old/client-0",
        "does not accept this client's certificate: the certificate of CN=client-0 is valid from",
    ),
    "a server's": (
        "ours/server",
        "the server does not accept this client's certificate: client.crt: must name one client",
    ),
    "none": (None, "the server asks for certificates: --keys DIR"),
}


@pytest.mark.parametrize(("place", "reason"), REFUSED_BY_TLS.values(), ids=REFUSED_BY_TLS)
def test_who_is_not_let_in_hears_why_and_disturbs_nobody(place: str | None, reason: str, pki: Path) -> None:
    if place == "forged":
        true, other = identity(pki, "ours/client-0"), identity(pki, "other/client-0")
        shown: Identity | None = Identity(true.ca, other.certificate, other.key)
    else:
        shown = identity(pki, place) if place else None
    with serving(identity(pki, "ours/server")) as server:
        Guest(server.address, 1, identity(pki, "ours/client-1"))
        until_present(server, 1)
        error = Guest(server.address, 0, shown).end()
        assert isinstance(error, UserError)
        assert not isinstance(error, NotYet)
        assert reason in str(error)
        assert str(error).isprintable()
        assert server.present() == [1]
        assert ask(server, 1, b"x") == b"re x"


@pytest.mark.parametrize(
    ("place", "address", "reason"),
    [
        ("old/server", "127.0.0.1", "the server's certificate is not accepted: certificate has expired"),
        ("ours/server", "127.0.0.2", "the server's certificate is not accepted: IP address mismatch"),
        ("other/server", "127.0.0.1", "another authority than that of our ca.crt signed it"),
        (None, "127.0.0.1", "what listens there speaks no TLS: a server without certificates?"),
    ],
)
def test_a_server_that_is_not_trusted_is_named(place: str | None, address: str, reason: str, pki: Path) -> None:
    with serving(identity(pki, place) if place else None, address=f"{address}:0") as server:
        error = Guest(server.address, 0, identity(pki, "ours/client-0")).end()
        assert isinstance(error, UserError)
        assert not isinstance(error, NotYet)
        assert reason in str(error)


def test_without_a_certificate_no_frame_is_read(pki: Path) -> None:
    anonymous = grpc.ssl_channel_credentials(identity(pki, "ours/client-0").ca)
    with serving(identity(pki, "ours/server")) as server:
        with grpc.secure_channel(server.address, anonymous) as channel, pytest.raises(grpc.RpcError) as caught:
            next(channel.stream_stream(METHOD)(iter([hello()])))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.members.by_id == {}


def hello(**more: Any) -> bytes:
    frame: bytes = Up(hello=Hello(**{"protocol": PROTOCOL, "version": "1", **more})).SerializeToString()
    return frame


def chunk(**fields: Any) -> bytes:
    frame: bytes = Up(chunk=Chunk(**fields)).SerializeToString()
    return frame


def converse(address: str, *sent: bytes, end: bool = False) -> tuple[list[Down], grpc.StatusCode | None, str]:
    """Send frames, whatever they are; give all that came back, and how the call ended."""
    heard: list[Down] = []
    over = threading.Event()

    def frames() -> Iterator[bytes]:
        yield from sent
        if not end:
            over.wait(PATIENCE)

    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            heard += map(Down.FromString, channel.stream_stream(METHOD)(frames(), timeout=PATIENCE))
        except grpc.RpcError as error:
            return heard, error.code(), error.details() or ""
        finally:
            over.set()
    return heard, None, ""


INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
ANSWER = {"message": 1, "data": b"1234"}
BREACHES: dict[str, tuple[list[bytes], grpc.StatusCode, str]] = {
    "no frame": ([b"\xff\xff\xff"], INVALID, "sent 3 bytes that are no frame of fedshare.v1"),
    "an empty frame": ([b""], INVALID, "sent something else before its greeting"),
    "no greeting": ([chunk(size=4, **ANSWER)], INVALID, "sent something else before its greeting"),
    "no frame after it": ([hello(), b"\xff\xff\xff"], INVALID, "sent 3 bytes that are no frame of fedshare.v1"),
    "an empty frame after it": ([hello(), b""], INVALID, "sent a frame that says nothing"),
    "two greetings": ([hello(), hello()], INVALID, "sent a second greeting"),
    "no message": ([hello(), chunk(size=4, **ANSWER)], INVALID, "an answer to message 1, which was never sent"),
    "beyond gRPC's limit": ([hello(), bytes(frames.FRAME_LIMIT + 1)], EXHAUSTED, "message larger than max"),
    "a number beyond all": ([hello(), chunk(message=2**64 - 1, data=b"1")], INVALID, "which was never sent"),
}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ([Chunk(**ANSWER)], "a chunk of message 1, whose first was never sent"),
        ([Chunk(message=1, size=9, data=b"1"), Chunk(message=2, data=b"2")], "a chunk of message 2, whose first was"),
        ([Chunk(size=3, **ANSWER)], "message 1 is longer than the 3 bytes it was said to have"),
        ([Chunk(size=10_001, **ANSWER)], "a message of 10001 bytes; at most 10000 are taken"),
    ],
)
def test_chunks_that_make_no_message(sent: list[Chunk], reason: str) -> None:
    assembly = frames.Assembly(10_000)
    for chunk in sent[:-1]:
        assert assembly.add(chunk) is None
    with pytest.raises(frames.FrameError, match=reason):
        assembly.add(sent[-1])


@pytest.mark.parametrize(("sent", "code", "reason"), BREACHES.values(), ids=BREACHES)
def test_a_breach_of_the_protocol_is_named_and_disturbs_nobody(
    sent: list[bytes], code: grpc.StatusCode, reason: str
) -> None:
    with serving(limit=10_000, grace=0.2) as server:
        Guest(server.address, 1)
        until_present(server, 1)
        heard, ended, details = converse(server.address, *sent)
        assert (ended, reason in details) == (code, True), details
        assert [down.WhichOneof("kind") for down in heard] == ["welcome"] * (len(sent) > 1)
        assert details.isprintable()
        until_present(server, 1)
        assert ask(server, 1, b"x") == b"re x"


def test_a_client_that_breaks_the_protocol_fails_its_messages_at_once() -> None:
    with serving(grace=60.0, limit=10_000) as server:
        guest = Guest(server.address, answer=lambda body: [bytes(10_001)])
        until_present(server, 0)
        ticket = server.send(0, [b"x"])
        reason = "it sent a message of 10001 bytes; at most 10000 are taken"
        assert receive(server, 1) == [Response(ticket, 0, None, reason)]
        assert server.journal.refused == {0: reason}
        assert isinstance(error := guest.end(), UserError)
        assert str(error).endswith("sent a message of 10001 bytes; at most 10000 are taken")


def test_a_message_above_the_limit_of_a_client_ends_it() -> None:
    with serving(grace=60.0) as server:
        guest = Guest(server.address, limit=10_000)
        until_present(server, 0)
        server.send(0, [bytes(10_001)])
        assert isinstance(error := guest.end(), UserError)
        assert str(error) == f"{server.address}: the server sent a message of 10001 bytes; at most 10000 are taken"


def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HELLO_DEADLINE", 0.3)
    with serving() as listening:
        _, code, details = converse(listening.address)
        assert (code, details.endswith("sent no greeting in 0.3 s")) == (INVALID, True)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "protocol": ({"protocol": 9}, "it runs fedshare 1 (stream 9), the server fedshare 1 (stream 1)"),
    "version": ({"version": "0.9"}, "it runs fedshare 0.9 (stream 1), the server fedshare 1 (stream 1)"),
    "config": ({"config": "ab" * 32}, "its config is abababababab, the server's cdcdcdcdcdcd"),
    "id": ({"client": 2}, "there are 2 clients, 0 to 1"),
    "largest id": ({"client": 2**32 - 1}, "there are 2 clients, 0 to 1"),
}


@pytest.mark.parametrize(("greeting", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_client_that_does_not_fit_hears_why(greeting: dict[str, Any], reason: str) -> None:
    with serving(clients=2, config_sha256="cd" * 32) as server:
        (down,), code, _ = converse(server.address, hello(**greeting))
        who = greeting.get("client", 0)
        assert (down.refusal.reason, code) == (f"client {who} was refused: {reason}", None)
        assert server.journal.refused == {who: reason}
        assert server.present() == []
        guest = Guest(server.address, config_sha256="cd" * 32)
        until_present(server, 0)
        assert server.journal.refused.keys() == {who} - {0}
        assert guest.error is None


def test_a_caller_that_hangs_up_while_it_is_greeted_is_not_there_for_ever() -> None:
    with serving(grace=0.1) as server, grpc.insecure_channel(server.address) as channel:
        for id in range(30):
            channel.stream_stream(METHOD)(iter([hello(client=id)])).cancel()
        Guest(server.address, 99)
        until_present(server, 99)


def test_leaving_and_hanging_up_are_two_things() -> None:
    with serving(grace=60.0) as server:
        leave = Up(leave=Leave()).SerializeToString()
        for id, sent in enumerate([[hello(client=0), leave], [hello(client=1)]]):
            assert converse(server.address, *sent, end=True)[1] is None
            until_known(server, id, connected=False)
        assert server.present() == [1]


def test_the_health_service_answers_over_mutual_tls(pki: Path) -> None:
    with serving(identity(pki, "ours/server")) as server:
        with tls.channel(server.address, identity(pki, "ours/client-1"), PATIENCE) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            answers = [check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE) for name in ("", SERVICE)]
        assert [answer.status for answer in answers] == [health_pb2.HealthCheckResponse.SERVING] * 2


@pytest.mark.parametrize("secure", [True, False])
def test_sockets_that_say_nothing_disturb_nobody(secure: bool, pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_DEADLINE", 0.5)
    own, theirs = (identity(pki, "ours/server"), identity(pki, "ours/client-0")) if secure else (None, None)
    with serving(own) as server, contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port(server)), PATIENCE)) for _ in range(200)
        ]
        Guest(server.address, 0, theirs)
        until_present(server, 0)
        assert ask(server, 0, b"x") == b"re x"
        for one in idle:
            with contextlib.suppress(ConnectionResetError):
                while one.recv(1024):  # without TLS the server speaks first
                    pass
        assert ask(server, 0, b"y") == b"re y"


# Processes.

CLIENT = f"""
import sys
from fedshare.transport.stream.client import StreamClient

def answer(body):
    print(body.decode(), flush=True)
    return [b"re ", body]

StreamClient(sys.argv[1], 0, None, "1", patience={PATIENCE}, heartbeat=2.0).run(lambda welcomed: answer)
"""


@pytest.fixture
def process() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(address: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CLIENT, address]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.process
def test_a_stopped_process_is_noticed_and_goes_on(process: Callable[[str], subprocess.Popen[str]]) -> None:
    with serving(grace=0.2, heartbeat=2.0) as server:
        client = process(server.address)
        until_present(server, 0)
        assert ask(server, 0, b"a") == b"re a"
        os.kill(client.pid, signal.SIGSTOP)
        ticket = server.send(0, [b"b"])
        assert receive(server, 1) == [Response(ticket, 0, None, "gone since 0.2 s ago")]
        os.kill(client.pid, signal.SIGCONT)
        until_present(server, 0)
        assert ask(server, 0, b"c") == b"re c"
        server.close("")
        assert client.wait(PATIENCE) == 0


@pytest.mark.process
def test_a_killed_process_is_replaced_by_the_next(process: Callable[[str], subprocess.Popen[str]]) -> None:
    with serving() as server:
        first = process(server.address)
        until_present(server, 0)
        assert ask(server, 0, b"a") == b"re a"
        first.kill()
        until_known(server, 0, connected=False)
        ticket = server.send(0, [b"b"])
        second = process(server.address)
        assert receive(server, 1) == [Response(ticket, 0, bytearray(b"re b"))]
        server.close("")
        assert second.wait(PATIENCE) == 0
        assert second.communicate()[0].split() == ["b"]
