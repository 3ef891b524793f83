"""`fedshare doctor` at peers and relays: what is there, whether it is of this run, and what is in the way."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import fedshare
from deployed import eventually, free_port
from fedshare.experiments.commands import doctor
from fedshare.experiments.config import compose
from fedshare.experiments.hosts.deploy_options import parser
from fedshare.experiments.hosts.peer import run_of
from fedshare.identity import keys
from fedshare.identity.identity import Identity
from fedshare.identity.signing import Signer
from fedshare.relay.database import SQLite
from fedshare.relay.keeper import Keeper
from fedshare.relay.sequencer import Settings as Log
from fedshare.relay.store import Store
from fedshare.transport.mesh.links import MeshLinks
from fedshare.transport.mesh.settings import Settings
from fedshare.transport.relay.server import RelayServer

Say = Callable[..., list[str]]
CONFIG = [
    "strategy=gossip",
    "peers=ring",
    "data=digits",
    "model=logistic",
    "partition.clients=3",
    "clients_per_round=null",
]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    keys.make(folder, ["localhost"], 3, 1, peers=True)
    return folder


@pytest.fixture(scope="module")
def run() -> bytes:
    return run_of(compose.resolved([*CONFIG, "folder=unused"]))


@pytest.fixture
def examine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """What the doctor says of an address: the level and the rest of each line that has it, or is about a clock."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def said(address: str, *arguments: str) -> list[str]:
        given = [address, *arguments, "--state", str(tmp_path / "state")]
        doctor.examine(parser("doctor").parse_intermixed_args(given))
        lines = capsys.readouterr().out.replace(f"{address}: ", "").splitlines()
        return [
            " ".join(line.split()) for line in lines if not line.split()[1].startswith(("versions", "/", "config:"))
        ]

    return said


@contextmanager
def peer(folder: Path, run: bytes, pki: Path | None, version: str = fedshare.__version__) -> Iterator[str]:
    """Peer 1 alone; its neighbour does not come."""
    identity = Identity.load(pki / "client-1") if pki else None
    signer = identity.signer() if identity else Signer.unprotected("peer 1")
    settings = Settings(run, version, 3, wait=600.0)
    address = f"127.0.0.1:{free_port()}"
    links = MeshLinks(1, address, {}, {0, 2}, settings, identity, signer, folder / "links", say=lambda line: None)
    with listening(links):
        yield address


@contextmanager
def listening(links: MeshLinks) -> Iterator[None]:
    """Let a peer wait for its neighbours, in a thread."""
    threading.Thread(target=_enter, args=(links,), daemon=True).start()
    host, port = links.address.split(":")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    eventually(listens, "the peer to listen")
    try:
        yield
    finally:
        links.close()


def _enter(links: MeshLinks) -> None:
    with suppress(BaseException):  # it is closed while it waits
        links.enter(1)


@contextmanager
def relay(folder: Path, run: bytes, pki: Path | None) -> Iterator[str]:
    identity = Identity.load(pki / "server") if pki else None
    signer = identity.signer() if identity else Signer.unprotected("relay")
    path = folder / "log.db"
    keeper = Keeper(Store(SQLite(path)), signer, Log(min_peers=2, round_seconds=3600.0), run=run)
    server = RelayServer(
        *("localhost:0", identity, keeper, lambda: Store(SQLite(path, False), False)),
        version=fedshare.__version__,
        say=lambda line: None,
    )
    server.start()
    try:
        yield server.address
    finally:
        server.close()


@pytest.mark.parametrize("secure", [False, True])
def test_a_peer_says_which_it_is_and_of_which_run(
    examine: Say, tmp_path: Path, pki: Path, run: bytes, secure: bool
) -> None:
    with peer(tmp_path, run, pki if secure else None) as address:
        keys = ["--keys", str(pki / "client-2")] if secure else []
        said = examine(address, *CONFIG, *keys)
    who = "mutual TLS as client 2; peer 1 is there" if secure else "no TLS"
    assert f"ok can be reached, {who}" in said
    assert "ok its health is SERVING" in said
    assert "ok peer 1, in round 0, connected with 0 of 2 neighbours" in said
    assert f"ok its run is this config's, {run.hex()[:12]}" in said
    assert any(line.startswith("ok clock: the peer's, to within 0.") for line in said)
    assert not any(line.startswith("FAILED") for line in said)


def test_a_peer_of_another_run_and_version_is_named(examine: Say, tmp_path: Path, run: bytes) -> None:
    with peer(tmp_path, run, None, version="0.0.1") as address:
        said = examine(address, *CONFIG, "rounds=7")
    assert f"FAILED it runs fedshare 0.0.1, this host fedshare {fedshare.__version__}" in said
    (line,) = (line for line in said if "its run is" in line)
    assert line.startswith(f"FAILED its run is {run.hex()[:12]}, this config's ")
    assert line.endswith(": another config, number of rounds or initial model")


@pytest.mark.parametrize("secure", [False, True])
def test_a_relay_says_for_whom_it_waits(examine: Say, tmp_path: Path, pki: Path, run: bytes, secure: bool) -> None:
    with relay(tmp_path, run, pki if secure else None) as address:
        said = examine(address, *CONFIG, *(["--keys", str(pki / "client-2")] if secure else []))
    assert f"ok can be reached, {'mutual TLS as client 2' if secure else 'no TLS'}" in said
    (line,) = (line for line in said if line.startswith("ok relay, with"))
    assert line.endswith(" 0 of 0 peers connected; round 1 waits for peers: 0 of 2 have come")
    assert f"ok it has no run yet; this config's is {run.hex()[:12]}" in said
    assert any(line.startswith("ok clock: the relay's, to within 0.") for line in said)
