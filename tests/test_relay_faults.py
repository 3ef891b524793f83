"""A relay that is killed, cut off, flooded and lied to: nothing that was acknowledged is lost or there twice."""

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_relay_stream import client, server

import relayed
from deployed import Command, eventually, free_port
from fedshare._proto.relay_pb2 import PeerHello, PeerUp, Piece, RelayDown, Saying
from fedshare.errors import UserError
from fedshare.identity import keys
from fedshare.identity.identity import Identity
from fedshare.machine import failpoints
from fedshare.relay.database import SQLite
from fedshare.relay.entries import Entry, Kind
from fedshare.relay.follower import Follower
from fedshare.relay.keeper import Keeper
from fedshare.relay.members import uploads
from fedshare.relay.sequencer import Settings
from fedshare.relay.spool import Spool
from fedshare.relay.store import Store
from fedshare.relay.verify import check
from fedshare.transport.relay.client import RelayClient, Taken
from fedshare.transport.relay.protocol import CONNECT, PROTOCOL, SERVICE
from fedshare.transport.relay.server import RelayServer
from fedshare.transport.relay.status import status
from fedshare.transport.stream.health import health
from proxy import DOWN, UP, Proxy
from relayed import RUN

POINTS = (
    *("relay before insert", "relay after insert", "relay after commit row"),
    *("relay before fsync", "relay after fsync", "relay after commit"),
)


class Talk:
    """Two peers who say something in each round, each in a thread of its own, and what was acknowledged."""

    def __init__(self, folder: Path, addresses: list[str], rounds: int) -> None:
        self.rounds = rounds
        self.clients = [client(folder, peer, address, 120.0) for peer, address in enumerate(addresses)]
        self.heads: list[bytes] = []
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._speak, args=(one,), daemon=True) for one in self.clients]

    def __enter__(self) -> "Talk":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for one in self.clients:
            one.close()

    def _speak(self, one: RelayClient) -> None:
        try:
            one.start()
            taken = one.commit(120)
            for round in range(1, self.rounds + 1):
                one.say(Kind.MESSAGE, round, b"%d in %d" % (one.peer, round), taken.position.head.head)
                taken = one.commit(120)
                assert uploads(taken.commit, [0, 1]) == {peer: b"%d in %d" % (peer, round) for peer in (0, 1)}
            self.heads.append(taken.position.head.head)
        except BaseException as error:
            self.errors.append(error)

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(120)
        assert not self.errors, self.errors
        assert len(set(self.heads)) == 1
        assert len(self.heads) == 2


@pytest.mark.process
@pytest.mark.parametrize("point", POINTS)
def test_a_relay_that_is_killed_at_any_point_loses_nothing(tmp_path: Path, point: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    flags = ("relay", "--log", str(tmp_path / "log"), "--listen", address, "--round-seconds", "3600")
    with Command(tmp_path, *flags, FEDSHARE_FAILPOINT=f"{point}:4") as relay:
        relay.until("listening on")
        with Talk(tmp_path, [address, address], 6) as talk:
            eventually(lambda: relay.process.poll() is not None or bool(talk.errors), "the end of the relay")
            assert relay.process.poll() == -9, talk.errors
            with Command(tmp_path, *flags) as again:
                talk.finish()
                again.until("listening on")
    store = Store(SQLite(tmp_path / "log" / "log.db", write=False), write=False)
    found = check(store)
    assert found.members.round == 6
    for commit in store.commits(1):
        assert sorted(one.peer for one in commit.entries if one.kind == Kind.MESSAGE) == [0, 1]
    store.close()


@pytest.mark.parametrize("point", ["peer before spool", "peer after spool"])
def test_a_peer_that_is_killed_repeats_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit(9)

    first = Spool(tmp_path, RUN, 0, relayed.signer(0)).say(Kind.MESSAGE, 1, b"one", bytes(32))
    monkeypatch.setenv("FEDSHARE_FAILPOINT", point)
    monkeypatch.setattr(failpoints.os, "kill", killed)
    with pytest.raises(SystemExit):
        Spool(tmp_path, RUN, 0, relayed.signer(0)).say(Kind.MESSAGE, 2, b"two", bytes(32))
    again = Spool(tmp_path, RUN, 0, relayed.signer(0))
    assert again.waiting[1] == first
    assert (2 in again.waiting) == (point == "peer after spool")
    monkeypatch.delenv("FEDSHARE_FAILPOINT")
    second = again.say(Kind.MESSAGE, 2, b"other bytes than before", bytes(32))
    assert second.number == 2
    assert second.body == (b"two" if point == "peer after spool" else b"other bytes than before")
    again.settled(2)
    assert Spool(tmp_path, RUN, 0, relayed.signer(0)).last == 2


def test_a_damaged_spool_is_named(tmp_path: Path) -> None:
    Spool(tmp_path, RUN, 0, relayed.signer(0)).say(Kind.MESSAGE, 1, b"one", bytes(32))
    data = bytearray((tmp_path / "said-1").read_bytes())
    data[-1] ^= 1
    (tmp_path / "said-1").write_bytes(data)
    with pytest.raises(UserError, match="said-1: is damaged"):
        Spool(tmp_path, RUN, 0, relayed.signer(0))


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayServer]:
    made = server(tmp_path)
    yield made
    made.close()


def test_a_bad_network_costs_time_only(relay: RelayServer, tmp_path: Path) -> None:
    draw = random.Random(4)
    with (
        Proxy(int(relay.address.rpartition(":")[2])) as proxy,
        Talk(tmp_path, [proxy.address, relay.address], 20) as talk,
    ):
        proxy.delay = 0.005
        for _ in range(4):
            before = proxy.passed[UP]
            proxy.cut_after(draw.choice((UP, DOWN)), draw.randrange(1, 400))
            eventually(lambda: proxy.passed[UP] > before + 300 or not talk.clients[0]._thread.is_alive(), "bytes")  # noqa: B023
        talk.finish()
    assert check(relay.keeper.store).members.round == 20


def raw(address: str, *frames: bytes) -> list[bytes]:
    """What a relay answers to these frames."""
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(CONNECT, bytes, bytes)(iter(frames), timeout=60)
        return [*call]


def hello(peer: int = 0, **other: object) -> bytes:
    fields: dict[str, object] = {"protocol": PROTOCOL, "peer": peer, "run": RUN, "nonce": bytes(32)}
    fields["key"] = relayed.signer(peer).public
    return PeerUp(hello=PeerHello(**(fields | other))).SerializeToString()  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=300), max_size=3), st.booleans())
def test_any_bytes_are_refused_and_the_relay_lives(relay: RelayServer, frames: list[bytes], greeted: bool) -> None:
    with suppress(grpc.RpcError):
        raw(relay.address, *[hello()] * greeted, *frames)
    assert health(relay.address, None, 30, SERVICE) == "SERVING"


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([b""], "something else before its greeting"),
        ([b"\xff\xff"], "2 bytes that are no frame"),
        ([bytes(5000)], "a greeting of 5000 bytes; at most 4096 are taken"),
        ([hello(run=b"short")], "a greeting with a peer, a run, a key or a nonce out of range"),
        ([hello(peer=2**32 - 1)], "a greeting with a peer"),
        ([hello(), PeerUp(say=Saying(number=1, size=2**40)).SerializeToString()], "a message of 1099511627776 bytes"),
        ([hello(), PeerUp(say=Saying(number=2**64 - 1, body=b"x")).SerializeToString()], "a number, a round"),
        ([hello(), PeerUp(piece=Piece(data=b"x")).SerializeToString()], "piece where it has no place"),
        ([hello(), hello()], "hello where it has no place"),
    ],
)
def test_what_breaks_the_protocol_is_named(relay: RelayServer, frames: list[bytes], expected: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(relay.address, *frames)
    assert expected in caught.value.details()


def test_frames_beyond_the_limit_are_not_read(relay: RelayServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(relay.address, hello(), PeerUp(say=Saying(number=1, body=bytes(1 << 20))).SerializeToString())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_another_run_or_protocol_is_refused_in_one_line(relay: RelayServer) -> None:
    raw_hello = hello(0)
    with grpc.insecure_channel(relay.address) as channel:
        call = channel.stream_stream(CONNECT, bytes, RelayDown.FromString)(iter([raw_hello]), timeout=60)
        assert next(call).WhichOneof("kind") == "welcome"
    found = [RelayDown.FromString(frame).refusal for frame in raw(relay.address, hello(1, run=bytes(32)))]
    assert found == ["peer 1 was refused: it is of run 000000000000, the log of run 000102030405"]
    found = [RelayDown.FromString(frame).refusal for frame in raw(relay.address, hello(1, protocol=9))]
    assert found == ["peer 1 was refused: it runs fedshare  (relay 9), the relay fedshare  (relay 1)"]


def test_replayed_and_skipped_numbers(relay: RelayServer, tmp_path: Path) -> None:
    peers = [client(tmp_path, peer, relay.address) for peer in (0, 1)]
    for peer in peers:
        peer.start()
    heads = [peer.commit(60).position.head.head for peer in peers]
    peers[0].say(Kind.MESSAGE, 1, b"a", heads[0])
    assert peers[0].flushed(60)
    entry = next(iter(peers[0]._spool.waiting.values()))
    for _ in range(3):  # a retry is the same entry
        peers[0]._outbox.put(entry)
    peers[1].say(Kind.MESSAGE, 1, b"b", heads[1])
    assert [one.number for one in peers[0].commit(60).commit.entries] == [1, 1]
    # Another program that uses this peer's key says something else under the same number.
    other = relayed.signed(Entry(Kind.MESSAGE, 0, 1, 1, b"other"), heads[0])
    peers[0]._outbox.put(other)
    with pytest.raises(UserError, match="peer 0 has said two things under number 1"):
        peers[0].commit(60)
    for peer in peers:
        peer.close()


def test_a_flood_of_connections_disturbs_nobody(relay: RelayServer, tmp_path: Path) -> None:
    port = int(relay.address.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        with Talk(tmp_path, [relay.address] * 2, 3) as talk:
            talk.finish()
        for _ in range(50):
            raw(relay.address, hello(1, run=bytes(32)))
        said = status(relay.address, None, 30)
        assert (said["rounds"], sorted(said["peers"])) == (4, ["0", "1"])


def test_a_full_disk_is_said_and_health_follows(tmp_path: Path) -> None:
    full: list[str | None] = [None]
    keeper = Keeper(
        Store(SQLite(tmp_path / "log.db")),
        relayed.Signer.unprotected("relay"),
        Settings(3600.0, 2),
        lambda: full[0],
        lambda line: None,
    )
    path = tmp_path / "log.db"
    made = RelayServer("127.0.0.1:0", None, keeper, lambda: Store(SQLite(path, False), False), say=lambda line: None)
    made.start()
    with Talk(tmp_path, [made.address] * 2, 200) as talk:
        eventually(lambda: made.keeper.sequencer.round > 2, "a few rounds")
        full[0] = "the disk is full"
        eventually(lambda: health(made.address, None, 30, SERVICE) == "NOT_SERVING", "NOT_SERVING")
        full[0] = None
        eventually(lambda: health(made.address, None, 30, SERVICE) == "SERVING", "SERVING")
        talk.finish()
    made.close()


class Secure:
    """A relay over mutual TLS."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        keys.make(self.keys, ["localhost"], 2, 30, peers=True)
        identity = Identity.load(self.keys / "server")
        keeper = Keeper(Store(SQLite(folder / "log.db")), identity.signer(), Settings(3600.0, 2), say=lambda line: None)
        reader = lambda: Store(SQLite(folder / "log.db", False), False)  # noqa: E731
        self.server = RelayServer("localhost:0", identity, keeper, reader, say=lambda line: None)
        self.server.start()

    def client(self, folder: Path, peer: int, identity: Identity | None, key: int | None = None) -> RelayClient:
        signer = Identity.load(self.keys / f"client-{peer if key is None else key}").signer()
        address = self.server.address
        follower = Follower(RUN, None, None, lambda *_: None, folder / "proofs", address)
        spool = Spool(folder / f"spool-{peer}", RUN, peer, signer)
        return RelayClient(address, peer, signer, identity, follower, spool, "", 0.5, say=lambda line: None)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    made = Secure(tmp_path_factory.mktemp("secure"))
    yield made
    made.server.close()


def test_wrong_identities_are_told_why(secure: Secure, tmp_path: Path) -> None:
    mine = Identity.load(secure.keys / "client-0")
    keys.make(tmp_path / "rogue", ["localhost"], 1, 30, peers=True)
    keys.make(tmp_path / "plain", None, 1, 30)
    for peer, identity, key, expected in (
        (1, mine, None, "peer 1 was refused: its certificate is peer 0's, but it says that it is peer 1"),
        (0, mine, 1, "peer 0 was refused: its certificate names another signing key"),
        (0, None, None, "the server asks for certificates"),
        (0, Identity.load(tmp_path / "rogue" / "client-0"), None, "the server's certificate is not accepted"),
    ):
        with pytest.raises(UserError, match=expected):
            secure.client(tmp_path, peer, identity, key).start()


def test_spoilt_bytes_end_the_connection_only(secure: Secure, tmp_path: Path) -> None:
    with Proxy(int(secure.server.address.rpartition(":")[2])) as proxy:
        address = secure.server.address
        secure.server.address = f"localhost:{proxy.address.rpartition(':')[2]}"
        peers = [secure.client(tmp_path, peer, Identity.load(secure.keys / f"client-{peer}")) for peer in (0, 1)]
        for peer in peers:
            peer._patience = 60.0
            peer.start()
        secure.server.address = address
        heads: list[Taken] = [peer.commit(60) for peer in peers]
        for round in range(1, 6):
            if round > 1:
                proxy.spoil(UP if round % 2 else DOWN)
            for peer, taken in zip(peers, heads, strict=True):
                peer.say(Kind.MESSAGE, round, b"%d" % round, taken.position.head.head)
            heads = [peer.commit(60) for peer in peers]
        assert check(secure.server.keeper.store).members.round == 5
        for peer in peers:
            peer.close()
