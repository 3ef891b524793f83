"""A server in this process and two client processes that echo what they receive, over mutual TLS, at three levels."""

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fedshare
from fedshare.identity.identity import Identity
from fedshare.transport.flower.load import App
from fedshare.transport.flower.stream import StreamGrid, live
from fedshare.transport.stream.client import StreamClient
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.settings import Settings

HOST, CLIENTS, WAIT = "127.0.0.1", 2, 60.0  # WAIT: seconds to wait for clients, and for a round
APP = Path(__file__).parent / "echo"
SPAWN = multiprocessing.get_context("spawn")

Once = Callable[[], None]  # one round
Prepare = Callable[[int, int], Once]  # by bytes and number of tensors; 0 bytes: an almost empty message


def client(level: str, address: str, id: int, folder: str) -> None:
    """Run a client until the server ends the run."""
    identity = Identity.load(Path(folder) / "keys" / f"client-{id}")
    stream = StreamClient(address, id, identity, fedshare.__version__, patience=WAIT)
    if level == "stream":
        stream.run(lambda welcomed: lambda body: [body])
    elif level == "StreamGrid":
        live(stream, lambda _: App.at(APP).client(), {})
    else:
        import trivial  # not above: the other levels do not need torch

        from fedshare.transport.flower.apps import client_app

        app = client_app(lambda run_config, node_config: ("", trivial.population(CLIENTS)))
        live(stream, lambda _: app, {"state-dir": str(Path(folder) / "state")})


def on_stream(server: StreamServer) -> Prepare:
    def once(body: bytes) -> None:
        for id in range(CLIENTS):
            server.send(id, [body])
        answers = 0
        while answers < CLIENTS:
            some = server.receive(WAIT)
            if not some or any(answer.body != body for answer in some):
                raise RuntimeError("a client did not send back what it got")
            answers += len(some)

    return lambda size, tensors: partial(once, bytes(size or 1))


def on_grid(server: StreamServer) -> Prepare:
    sys.path.append(str(APP))
    from echo.server_app import exchange, present, records

    grid = StreamGrid(server)
    nodes = present(grid, CLIENTS, WAIT)
    return lambda size, tensors: partial(exchange, grid, nodes, records(size, tensors), WAIT)


def on_network(server: StreamServer) -> Prepare:
    import trivial

    from fedshare.network import Purpose
    from fedshare.payload import Payload
    from fedshare.transport.flower.network import FlowerNetwork
    from fedshare.transport.flower.participant import Terms

    terms = Terms.of("", trivial.population(CLIENTS))
    network = FlowerNetwork(StreamGrid(server), terms, bytes(8), WAIT, CLIENTS, CLIENTS, WAIT, say=lambda line: None)
    network.client_ids()

    def once(payload: Payload) -> None:
        exchange = network.exchange(Purpose.TRAIN, 1, dict.fromkeys(range(CLIENTS), payload))
        if exchange.absent:
            raise RuntimeError(f"no answer: {exchange.absent}")
        if any(answer.nbytes != payload.nbytes for answer in exchange.answers.values()):
            raise RuntimeError("a client did not send back what it got")

    return lambda size, tensors: partial(once, trivial.payload(size, tensors))


LEVELS = {"stream": on_stream, "StreamGrid": on_grid, "FlowerNetwork": on_network}


class Proxy:
    """Forwards TCP connections to `target`, and counts the bytes each way."""

    def __init__(self, target: int) -> None:
        self.up = self.down = 0
        self._lock, self._target = threading.Lock(), target
        self._door = socket.create_server((HOST, 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, far = self._door.accept()[0], socket.create_connection((HOST, self._target))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pump, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Deployment:
    prepare: Prepare
    pids: dict[str, int | None]
    proxy: Proxy | None


@contextmanager
def deployed(
    level: str, folder: Path, counted: bool = False, gate: tuple[str, str] | None = None
) -> Iterator[Deployment]:
    """Yield a server in this process and its clients, one process each, with a counting proxy between if `counted`.

    `gate`: the address of a gate between them, and the server's own behind it.
    """
    identity = None if gate else Identity.load(folder / "keys" / "server")
    listen = gate[1] if gate else f"{HOST}:0"
    server = StreamServer(
        listen, identity, Settings(fedshare.__version__, clients=CLIENTS, name="bench" if gate else "")
    )
    server.start()
    proxy = Proxy(int(server.address.rpartition(":")[2])) if counted else None
    address = f"{HOST}:{proxy.port}" if proxy else gate[0] if gate else server.address
    clients = [SPAWN.Process(target=client, args=(level, address, id, str(folder))) for id in range(CLIENTS)]
    try:
        for each in clients:
            each.start()
        until = time.monotonic() + WAIT
        while len(server.present()) < CLIENTS:
            if time.monotonic() > until or not all(each.is_alive() for each in clients):
                raise RuntimeError(f"{level}: waited up to {WAIT:g} s for {CLIENTS} clients; have {server.present()}")
            server.wait_for_change(0.1)
        yield Deployment(LEVELS[level](server), {"server": os.getpid(), "client 0": clients[0].pid}, proxy)
    finally:
        server.close("")
        for each in clients:
            each.join(10)
            each.kill()
