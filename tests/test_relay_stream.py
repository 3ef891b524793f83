"""Peers and their relay over gRPC, in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import fedshare
import relayed
from fedshare.errors import RunHalted, UserError
from fedshare.relay.database import SQLite
from fedshare.relay.entries import Kind
from fedshare.relay.follower import Follower
from fedshare.relay.keeper import Keeper
from fedshare.relay.members import uploads
from fedshare.relay.position import Positions
from fedshare.relay.sequencer import Settings
from fedshare.relay.spool import Spool
from fedshare.relay.store import Store
from fedshare.transport.relay.client import RelayClient
from fedshare.transport.relay.server import RelayServer
from relayed import RUN


def server(folder: Path, address: str = "127.0.0.1:0", **settings: float) -> RelayServer:
    defaults = {"min_peers": 2, "round_seconds": 3600.0}
    path = folder / "log.db"
    keeper = Keeper(
        Store(SQLite(path)),
        relayed.Signer.unprotected("relay"),
        Settings(**(defaults | settings)),  # type: ignore[arg-type]
        say=lambda line: None,
    )
    made = RelayServer(address, None, keeper, lambda: Store(SQLite(path, False), False), say=lambda line: None)
    made.start()
    return made


def client(folder: Path, peer: int, address: str, patience: float = 60.0, start: int | None = None) -> RelayClient:
    own = folder / f"peer-{peer}"
    positions = Positions(own / "log")
    seen = positions.newest()
    position = seen if start is None else positions.read(start)
    follower = Follower(RUN, position, seen, lambda *_: None, own / "proofs", address)
    signer = relayed.signer(peer)
    spool = Spool(own / "spool", RUN, peer, signer)
    return RelayClient(
        address, peer, signer, None, follower, spool, fedshare.__version__, patience, say=lambda line: None
    )


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayServer]:
    made = server(tmp_path)
    yield made
    made.close()


def test_what_peers_say_comes_back_in_commits(relay: RelayServer, tmp_path: Path) -> None:
    peers = [client(tmp_path, peer, relay.address) for peer in (0, 1)]
    for peer in peers:
        peer.start()
    first = [peer.commit(60) for peer in peers]
    for round in range(1, 4):
        for peer, last in zip(peers, first, strict=True):
            peer.say(Kind.MESSAGE, round, b"%d says %d" % (peer.peer, round), last.position.head.head)
        first = [peer.commit(60) for peer in peers]
        assert first[0].position.head == first[1].position.head
        assert uploads(first[0].commit, [0, 1]) == {0: b"0 says %d" % round, 1: b"1 says %d" % round}
    for peer in peers:
        peer.close()


def test_large_messages_go_in_pieces(relay: RelayServer, tmp_path: Path) -> None:
    peers = [client(tmp_path, peer, relay.address) for peer in (0, 1)]
    for peer in peers:
        peer.start()
    large = bytes(range(256)) * 8192  # 2 MiB
    for peer in peers:
        peer.say(Kind.MESSAGE, 1, large, peer.commit(60).position.head.head)
    for peer in peers:
        assert uploads(peer.commit(60).commit, [0, 1]) == {0: large, 1: large}
    with pytest.raises(UserError, match="the relay takes 16777216"):
        peers[0].say(Kind.MESSAGE, 2, bytes(17 << 20), bytes(32))
    for peer in peers:
        peer.close()


def test_a_relay_that_is_stopped_and_started_goes_on(tmp_path: Path) -> None:
    relay = server(tmp_path)
    address = relay.address
    peers = [client(tmp_path, peer, address) for peer in (0, 1)]
    for peer in peers:
        peer.start()
    heads = [peer.commit(60).position.head.head for peer in peers]
    peers[0].say(Kind.MESSAGE, 1, b"a", heads[0])
    assert peers[0].flushed(60)
    relay.close()
    peers[1].say(Kind.MESSAGE, 1, b"b", heads[1])
    relay = server(tmp_path, address)
    for peer in peers:
        assert uploads(peer.commit(60).commit, [0, 1]) == {0: b"a", 1: b"b"}
        peer.close()
    relay.close()


def test_an_old_copy_of_the_log_is_noticed_and_proven(tmp_path: Path) -> None:
    relay = server(tmp_path)
    peers = [client(tmp_path, peer, relay.address) for peer in (0, 1)]
    for peer in peers:
        peer.start()
    last = [peer.commit(60) for peer in peers]
    relay.keeper.store.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old = (tmp_path / "log.db").read_bytes()
    for peer, taken in zip(peers, last, strict=True):
        peer.say(Kind.MESSAGE, 1, b"x", taken.position.head.head)
    for peer in peers:
        Positions(tmp_path / f"peer-{peer.peer}" / "log").write(peer.commit(60).position)
        peer.close()
    relay.close()
    (tmp_path / "log.db").write_bytes(old)
    for extra in ("log.db-wal", "log.db-shm"):
        (tmp_path / extra).unlink(missing_ok=True)
    relay = server(tmp_path, relay.address)
    with pytest.raises(RunHalted, match="the relay is behind: its log ends with round 0, and this peer has s"):
        client(tmp_path, 0, relay.address).start()
    assert (tmp_path / "peer-0" / "proofs" / "relay-rewind-1.json").exists()
    # The old log goes on, without peer 0, and is then another one.
    others = [client(tmp_path / "others", peer, relay.address) for peer in (0, 1)]
    for peer in others:
        peer.start()
        peer.say(Kind.MESSAGE, 1, b"y", peer.commit(60).position.head.head)
    for peer in others:
        peer.commit(60)
        peer.close()
    with pytest.raises(RunHalted, match="the relay has forked its log: it has signed two heads of round 1; proof"):
        client(tmp_path, 1, relay.address).start()
    relay.close()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"127.0.0.1:1: nobody listens there; given up after 0.1 s"):
        client(tmp_path, 0, "127.0.0.1:1", patience=0.1).start()
