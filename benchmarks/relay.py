"""How many messages a relay acknowledges, and how fast; beside it, plain gRPC calls of the same messages.

64 peers in two processes send one message a round each, over mutual TLS, and follow the log; the relay checks each
signature, and acknowledges after fsync. Then each peer makes unary calls with the same messages to a server that does
nothing.

    python benchmarks/relay.py --seconds 60
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import grpc

from fedshare._proto.relay_pb2 import PeerHello, PeerUp, RelayDown, Saying
from fedshare.identity import keys
from fedshare.identity.identity import Identity
from fedshare.identity.signing import SIGNATURE
from fedshare.relay.commits import Commit, start
from fedshare.relay.entries import Entry, Kind
from fedshare.transport.relay.protocol import CONNECT, PROTOCOL, Whole
from fedshare.transport.stream import tls
from fedshare.transport.stream.service import Door

RUN = bytes(range(32))
PLAIN = "/benchmark/Say"


@lru_cache(maxsize=8)
def read(data: bytes, before: bytes) -> tuple[Commit, bytes]:
    """Return a commit and its head: read once for the peers of a process, for each has a host of its own in fact."""
    commit = Commit.unpack(data)
    return commit, commit.head(before)


async def peer(id: int, folder: Path, address: str, size: int, until: float, took: list[float]) -> int:
    """Send a message of `size` bytes a round, and note the seconds to each acknowledgement; return their number.

    It checks the chain, and not the others' signatures: they are for 64 hosts to check, not for one.
    """
    identity = Identity.load(folder / f"client-{id}")
    signer = identity.signer()
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    async with grpc.aio.secure_channel(address, credentials, tls.options(10.0)) as channel:
        call = channel.stream_stream(CONNECT, PeerUp.SerializeToString, RelayDown.FromString)()
        hello = PeerHello(protocol=PROTOCOL, peer=id, run=RUN, key=signer.public, nonce=bytes(32))
        hello.version = __import__("fedshare").__version__
        await call.write(PeerUp(hello=hello))
        head, whole, sent, open_ = start(RUN), Whole(1 << 30), 0.0, 0
        body = os.urandom(size)
        async for down in call:
            now = time.perf_counter()
            kind = down.WhichOneof("kind")
            if kind == "refusal":
                raise SystemExit(f"peer {id}: {down.refusal}")
            if kind == "not_taken":
                raise SystemExit(f"peer {id}: {down.not_taken.reason}")
            if kind == "acknowledged" and open_:
                took.append(now - sent)
                open_ = 0
            if kind != "commit":
                continue
            piece = down.commit
            data = whole.begin(piece.of, piece.size, piece.data) if piece.size else whole.add(piece.of, piece.data)
            if data is None:
                continue
            commit, head = read(bytes(data[SIGNATURE:]), head)
            if open_ and any(one.peer == id for one in commit.entries):
                took.append(now - sent)
                open_ = 0
            if time.time() > until:
                break
            said = Entry(Kind.MESSAGE, id, commit.round + 1, commit.round + 1, body)
            sent, open_ = time.perf_counter(), 1
            signature = signer.sign(said.signed(RUN, head))
            await call.write(PeerUp(say=Saying(number=said.number, round=said.round, signature=signature, body=body)))
        call.cancel()
    return len(took)


async def caller(id: int, folder: Path, address: str, size: int, until: float, took: list[float]) -> int:
    """Make unary calls with the same messages, one after the other."""
    identity = Identity.load(folder / f"client-{id}")
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    async with grpc.aio.secure_channel(address, credentials, tls.options(10.0)) as channel:
        call = channel.unary_unary(PLAIN, PeerUp.SerializeToString, bytes)
        say = PeerUp(say=Saying(number=1, round=1, signature=bytes(64), body=os.urandom(size)))
        while time.time() < until:
            began = time.perf_counter()
            await call(say)
            took.append(time.perf_counter() - began)
    return len(took)


async def plain(folder: Path, address: str) -> None:
    """A server that answers such calls with nothing."""

    async def answer(frame: bytes, context: grpc.aio.ServicerContext) -> bytes:
        PeerUp.FromString(frame)
        return b""

    server = grpc.aio.server(options=tls.server_options(10.0, 1000))
    server.add_generic_rpc_handlers((Door({PLAIN: grpc.unary_unary_rpc_method_handler(answer)}),))
    port = tls.listen(server, address, tls.Renewed(Identity.load(folder / "server"), print))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def part(options: argparse.Namespace) -> None:
    """Some of the peers, in this process."""
    first, last = map(int, options.part.split("-"))
    took: list[list[float]] = [[] for _ in range(first, last)]
    act = caller if options.plain else peer
    folder = Path(options.folder)
    await asyncio.gather(
        *(act(id, folder, options.address, options.size, options.until, took[id - first]) for id in range(first, last))
    )
    print(json.dumps([t for one in took for t in one]))


def rss(process: int) -> float:
    """MB of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def cpu(process: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ")[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(options: argparse.Namespace, folder: Path, address: str, server: int, plainly: bool) -> None:
    until = time.time() + options.seconds + 3
    half = options.peers // 2
    mine = [sys.executable, __file__, "--folder", str(folder), "--address", address, "--size", str(options.size)]
    mine += ["--until", str(until), *["--plain"] * plainly]
    parts = [
        subprocess.Popen([*mine, "--part", span], stdout=subprocess.PIPE, text=True)
        for span in (f"0-{half}", f"{half}-{options.peers}")
    ]
    memory, began, used = [], time.time(), cpu(server)
    while time.time() < until:
        time.sleep(max(0.1, min(options.seconds / 10, until - time.time())))
        memory.append(round(rss(server)))
    share = (cpu(server) - used) / (time.time() - began)
    took = sorted(t for one in parts for t in json.loads(one.communicate(timeout=60)[0]))
    rate, p50, p99 = len(took) / options.seconds, statistics.median(took), took[int(len(took) * 0.99)]
    name = "plain unary calls" if plainly else "relay"
    print(
        f"{name}: {options.peers} peers, {options.size} bytes each: {rate:,.0f} acknowledged a second, p50 "
        f"{p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms; server: {share:.2f} cores, RSS {memory} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--peers", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="bytes of a message")
    for name in ("--part", "--folder", "--address"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        asyncio.run(part(options))
        return
    if options.plain:
        asyncio.run(plain(Path(options.folder), options.address))
        return
    with tempfile.TemporaryDirectory(dir=".") as place:
        folder = Path(place) / "keys"
        keys.make(folder, ["localhost"], options.peers, 30, peers=True)
        ours = [sys.executable, "-m", "fedshare", "relay", "--log", str(Path(place) / "log"), "--listen"]
        ours += ["localhost:9561", "--keys", str(folder), "--peers", str(options.peers), "--min-peers", "1"]
        theirs = [sys.executable, __file__, "--plain", "--folder", str(folder), "--address", "localhost:9562"]
        for command, address, plainly in ((ours, "localhost:9561", False), (theirs, "localhost:9562", True)):
            with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
                assert server.stdout
                server.stdout.readline()
                try:
                    measured(options, folder, address, server.pid, plainly)
                finally:
                    server.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
