"""Bytes on a peer's socket for each message to a relay: of its probes, the signature, the framing and TLS, both ways.

Two peers over mutual TLS, one of them through a proxy that counts; the connection's own handshake is not counted.

    python benchmarks/relay_bytes.py
"""

import contextlib
import socket
import tempfile
import threading
from pathlib import Path

import fedshare
from fedshare.experiments.hosts.relayed import checks
from fedshare.identity import keys
from fedshare.identity.identity import Identity
from fedshare.relay.database import SQLite
from fedshare.relay.entries import Kind
from fedshare.relay.follower import Follower
from fedshare.relay.keeper import Keeper
from fedshare.relay.sequencer import Settings
from fedshare.relay.spool import Spool
from fedshare.relay.store import Store
from fedshare.transport.relay.client import RelayClient
from fedshare.transport.relay.server import RelayServer

RUN = bytes(32)
METRICS = 17  # bytes beside the probes: the form, the number of examples and the loss
ROUNDS = 50


class Counter:
    """A proxy to `port` that counts what it passes on, by direction."""

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._port))
            for one, other, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pass, args=(one, other, way), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):  # the other way has ended
            while data := one.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                other.sendall(data)
        other.close()


def client(folder: Path, peer: int, port: int) -> RelayClient:
    identity = Identity.load(folder / "keys" / f"client-{peer}")
    signer, address = identity.signer(), f"localhost:{port}"
    follower = Follower(RUN, None, None, checks(identity), folder / "proofs", address)
    spool = Spool(folder / f"spool-{peer}", RUN, peer, signer)
    return RelayClient(
        address, peer, signer, identity, follower, spool, fedshare.__version__, heartbeat=3600.0, say=lambda _: None
    )


def measured(folder: Path, sizes: list[int]) -> list[tuple[int, float, float]]:
    """Return, for each size of a message, the mean bytes of a round up and down."""
    keys.make(folder / "keys", ["localhost"], 2, 30, peers=True)
    server = Identity.load(folder / "keys" / "server")
    keeper = Keeper(Store(SQLite(folder / "log.db")), server.signer(), Settings(3600.0, 2), say=lambda _: None)
    relay = RelayServer(
        *("localhost:0", server, keeper, lambda: Store(SQLite(folder / "log.db", False), False)),
        version=fedshare.__version__,
        heartbeat=3600.0,
        say=lambda _: None,
    )
    relay.start()
    port = int(relay.address.rpartition(":")[2])
    counter = Counter(port)
    peers = [client(folder, 0, counter.port), client(folder, 1, port)]
    for peer in peers:
        peer.start()
    heads = [peer.commit(60).position.head.head for peer in peers]
    found, round = [], 1
    for size in sizes:
        before = counter.up, counter.down
        for _ in range(ROUNDS):
            for peer, head in zip(peers, heads, strict=True):
                peer.say(Kind.MESSAGE, round, bytes(size + METRICS), head)
            heads = [peer.commit(60).position.head.head for peer in peers]
            round += 1
        found.append((size, (counter.up - before[0]) / ROUNDS, (counter.down - before[1]) / ROUNDS))
    for peer in peers:
        peer.close()
    relay.close()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for probes, up, down in measured(Path(folder), [1, 8, 64, 256, 1024]):
            print(
                f"{probes} probes: {up:.0f} bytes up ({up / probes:.2f} a probe), "
                f"{down:.0f} down for two peers' messages"
            )


if __name__ == "__main__":
    main()
