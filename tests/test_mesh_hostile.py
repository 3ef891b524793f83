"""Who may not come to a peer, and what it may be sent: it goes on, and says in one line why somebody was refused."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployed import eventually, free_port
from fedshare._proto.mesh_pb2 import Accept, Meeting, MeshFrame, MeshHello, Propose, Whereabouts
from fedshare._proto.stream_pb2 import Chunk
from fedshare.errors import UserError
from fedshare.experiments.commands.keys import keys as keys_command
from fedshare.identity import certificates
from fedshare.identity.identity import Identity
from fedshare.identity.signing import Signer
from fedshare.transport.mesh.links import MeshLinks
from fedshare.transport.mesh.rendezvous import status
from fedshare.transport.mesh.roster import Roster
from fedshare.transport.mesh.settings import LINK, PROTOCOL, Settings
from fedshare.transport.stream import tls
from fedshare.transport.stream.frames import FRAME_LIMIT
from meshed import Meshed
from world import PATIENCE

RUN = b"r" * 32
COUNT = 3


class Victim:
    """Peer 0 of three, which waits for the others, and what it has said."""

    def __init__(self, folder: Path, keys: Path | None = None) -> None:
        self.folder, self.keys = folder, keys
        self.addresses = {peer: f"127.0.0.1:{free_port()}" for peer in range(COUNT)}
        self.lines: list[str] = []
        self.pool = ThreadPoolExecutor(COUNT)
        self.meshes: list[MeshLinks] = []
        self.first = self.play(0)
        eventually(lambda: self._listens() or self.first.done(), "a listening peer")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            host, _, port = self.addresses[0].rpartition(":")
            return probe.connect_ex((host, int(port))) == 0

    def identity(self, peer: int) -> Identity | None:
        return Identity.load(self.keys / f"client-{peer}") if self.keys else None

    def play(self, me: int) -> "Future[list[dict[int, bytes]]]":
        """Let a peer play three rounds, in a thread: what it took in each."""
        identity = self.identity(me)
        mesh = MeshLinks(
            *(me, self.addresses[me], self.addresses, range(COUNT)),
            Settings(RUN, "1", COUNT, 3, PATIENCE, PATIENCE, PATIENCE, heartbeat=1.0, limit=1 << 20, quiet=0.0),
            *(identity, identity.signer() if identity else Signer.unprotected(f"peer {me}")),
            self.folder / f"spool-{me}",
            say=self.lines.append if me == 0 else lambda line: None,
        )
        self.meshes.append(mesh)
        others = {peer for peer in range(COUNT) if peer != me}

        def rounds() -> list[dict[int, bytes]]:
            try:
                found = []
                for round in (1, 2, 3):
                    assert mesh.enter(round) == round
                    found.append(mesh.swap(0, dict.fromkeys(others, b"%d" % me), others))
                mesh.leave()
                return found
            finally:
                mesh.close()

        return self.pool.submit(rounds)

    def finish(self) -> None:
        """Let the others come: peer 0 plays with them as if nothing had been."""
        second = self.play(2)  # in whose name others were refused
        eventually(lambda: "connected with peer 2" in self.lines, "peer 2")
        for me, one in enumerate([self.first, self.play(1), second]):
            assert one.result(PATIENCE) == [{peer: b"%d" % peer for peer in range(COUNT) if peer != me}] * 3

    def end(self) -> None:
        for mesh in self.meshes:
            mesh.close()
        self.pool.shutdown()

    def channel(self, peer: int = 2) -> grpc.Channel:
        options = [*tls.options(1.0), ("grpc.ssl_target_name_override", "peer-0.fedshare")]
        if not (identity := self.identity(peer)):
            return grpc.insecure_channel(self.addresses[0], options)
        credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
        return grpc.secure_channel(self.addresses[0], credentials, options)

    def answers(self, *frames: bytes, peer: int = 2) -> list[MeshFrame]:
        """Send these frames, and return what peer 0 answers before it hangs up."""
        found = []
        hold = threading.Event()

        def sent() -> Iterator[bytes]:
            yield from frames
            hold.wait(PATIENCE)  # it is peer 0 that hangs up

        with self.channel(peer) as channel:
            try:
                for answer in channel.stream_stream(LINK)(sent(), timeout=PATIENCE):
                    found.append(MeshFrame.FromString(answer))
            except grpc.RpcError:
                pass
            finally:
                hold.set()
        return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "keys"
    keys_command([str(folder), "--peers", "5"])
    return folder


@contextmanager
def attacked(folder: Path, keys: Path | None = None) -> Iterator[Victim]:
    victim = Victim(folder, keys)
    try:
        yield victim
        victim.finish()
    finally:
        victim.end()


def hello(**changes: object) -> bytes:
    fields = {"protocol": PROTOCOL, "peer": 2, "version": "1", "run": RUN} | changes
    return MeshFrame(hello=MeshHello(**fields)).SerializeToString()  # type: ignore[arg-type]


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another run": ({"run": b"q" * 32}, f"its run is {b'q'.hex() * 6}, that of peer 0 {b'r'.hex() * 6}"),
    "another version": ({"version": "2\n!"}, "it runs fedshare 2\\n! (mesh 1), peer 0 fedshare 1 (mesh 1)"),
    "another protocol": ({"protocol": 7}, "it runs fedshare 1 (mesh 7), peer 0 fedshare 1 (mesh 1)"),
    "a number out of range": ({"peer": 4_000_000_000}, "there are 3 peers, 0 to 2"),
    "its own number": ({"peer": 0}, "peer 0 is no neighbour of peer 0 in the run's graph"),
}


def test_who_greets_otherwise_is_refused_with_the_reason(tmp_path: Path) -> None:
    with attacked(tmp_path) as victim:
        for changes, reason in REFUSED.values():
            (answer,) = victim.answers(hello(**changes))
            assert answer.refusal.reason == f"peer {changes.get('peer', 2)} was refused: {reason}"
            assert any(reason in line for line in victim.lines), victim.lines


def test_only_the_holder_of_a_certificate_speaks_for_its_peer(tmp_path: Path, keys: Path) -> None:
    with attacked(tmp_path, keys) as victim:
        (answer,) = victim.answers(hello(peer=1), peer=2)
        assert "its certificate is peer 2's, but it says that it is peer 1" in answer.refusal.reason
        assert victim.answers(hello(peer=2), b"\xff", peer=2)[0].HasField("hello")


def test_a_peer_that_the_operator_bars_is_refused(tmp_path: Path, keys: Path) -> None:
    denied = keys / "client-0" / "denied"
    try:
        with attacked(tmp_path, keys) as victim:
            denied.write_text("client 2\nend\n")
            (answer,) = victim.answers(hello())
            assert "the operator has barred this client" in answer.refusal.reason
            denied.write_text("end\n")
    finally:
        denied.unlink(missing_ok=True)


FRAMES: list[Callable[[], bytes]] = [
    lambda: MeshFrame().SerializeToString(),
    lambda: hello(),
    lambda: MeshFrame(chunk=Chunk(message=1, data=b"x")).SerializeToString(),
    lambda: MeshFrame(chunk=Chunk(message=1 << 63, size=1 << 40, data=b"x")).SerializeToString(),
    lambda: MeshFrame(propose=Propose(round=1 << 63, entered=1 << 62, skip=True)).SerializeToString(),
    lambda: MeshFrame(accept=Accept(round=5)).SerializeToString(),
    lambda: MeshFrame(meeting=Meeting(run=RUN, peers=[Whereabouts(peer=1, address="evil:1")])).SerializeToString(),
    lambda: b"\0" * (FRAME_LIMIT + 1),
]


@settings(max_examples=40)
@given(
    greets=st.booleans(),
    frames=st.lists(st.one_of(st.binary(max_size=200), st.sampled_from(FRAMES).map(lambda make: make())), max_size=4),
)
def _send(victim: Victim, greets: bool, frames: list[bytes]) -> None:
    victim.answers(*([hello()] if greets else []), *frames, b"\xff\xff")  # the last one is none, and ends it


def test_whatever_a_stranger_sends_a_peer_goes_on(tmp_path: Path) -> None:
    with attacked(tmp_path) as victim:
        _send(victim)
        assert not victim.first.done()


def test_many_idle_connections_keep_nobody_out(tmp_path: Path, keys: Path) -> None:
    made = []
    try:
        with attacked(tmp_path, keys) as victim:
            host, _, port = victim.addresses[0].rpartition(":")
            for _ in range(300):
                made.append(socket.create_connection((host, int(port)), PATIENCE))
            assert status(victim.addresses[0], victim.identity(1)).peer == 0
    finally:
        for one in made:
            one.close()


def test_a_peer_that_all_refuse_ends_with_the_reason(tmp_path: Path) -> None:
    with Meshed(tmp_path, 3, 10**6, None, "--grace", "3") as mesh:
        for me in (0, 2):
            mesh.start(me, "--wait", "600")
        alien = mesh.start(1, "--run", "other", "--wait", "600")
        assert alien.wait() == 2
        assert "its run is" in alien.said.splitlines()[-1]
        for me in (0, 2):  # they play without it
            mesh.meet(me, {2 - me}, after=3)


def test_a_peer_that_reaches_nobody_ends_and_names_all(tmp_path: Path) -> None:
    with Meshed(tmp_path, 3, 5) as mesh:
        alone = mesh.start(1, "--wait", "0.5")
        assert alone.wait() == 3
        said = alone.said.splitlines()[-1]
        assert said.startswith("no neighbour was reached in 0.5 s: peer 0 (")
        assert "peer 2 (it did not dial)" in said


def test_who_dials_another_peer_than_it_means_is_told(tmp_path: Path, keys: Path) -> None:
    with Meshed(tmp_path, 3, 5, keys, "--wait", "5") as mesh:
        mesh.start(0)
        wrong = mesh.start(2, ports=["x", mesh.ports[0], mesh.ports[2]])  # at peer 1's address is peer 0
        wrong.until("peer 1: ")
        assert "certificate is not accepted" in wrong.said


def test_a_folder_is_for_one_process_and_one_run(tmp_path: Path, keys: Path) -> None:
    fields = ("127.0.0.1:0", {}, {1}, Settings(RUN, "1", 2), None, Signer.unprotected("peer 0"), tmp_path / "spool")
    mesh = MeshLinks(0, *fields)
    with pytest.raises(UserError, match="another process has these messages: does peer 0 run already"):
        MeshLinks(0, *fields)
    mesh.close()
    with pytest.raises(UserError, match="peer 0 cannot show the certificate of client 3"):
        MeshLinks(0, "127.0.0.1:0", {}, {1}, fields[3], Identity.load(keys / "client-3"), *fields[5:])


# Addresses that are passed on.


def whereabouts(keys: Path, peer: int, address: str, run: bytes = RUN) -> Meeting:
    identity = Identity.load(keys / f"client-{peer}")
    roster = Roster(peer, run, 5, identity, identity.signer(), {}, print)
    roster.announce(address)
    return roster.all()[0]


def test_an_address_is_believed_only_as_its_peer_has_signed_it(keys: Path) -> None:
    lines: list[str] = []
    identity = Identity.load(keys / "client-0")
    roster = Roster(0, RUN, 4, identity, identity.signer(), {}, lines.append)
    roster.announce("here:1")
    good = whereabouts(keys, 1, "there:1")
    newer = whereabouts(keys, 1, "there:2")
    assert roster.learn(newer) == newer
    assert roster.learn(good) is None  # older
    assert roster.address(1) == "there:2"
    assert roster.key(1) == certificates.signing_key_of((keys / "client-1" / "client.crt").read_bytes())
    changes: list[tuple[dict[str, object], str]] = [
        ({"address": "evil:1"}, "peer 1 has not signed this address"),
        ({"address": "evil"}, "an address is HOST:PORT"),
        ({"address": "e" * 300 + ":1"}, "too long"),
        ({"certificate": (keys / "client-2" / "client.crt").read_bytes()}, "not its own"),
        ({"certificate": b"x"}, "this authority has not signed"),
        ({"signature": b"x" * 64}, "has not signed this address"),
        ({"signature": b"x"}, "with a signature each"),
        ({"peer": 7}, "there are 4 peers, 0 to 3"),
        ({"counter": 1 << 63}, "with a signature each"),
    ]
    for change, reason in changes:
        forged = whereabouts(keys, 1, "there:3").peers[0]
        for name, value in change.items():
            setattr(forged, name, value)
        assert roster.learn(Meeting(run=RUN, peers=[forged])) is None
        assert reason in lines[-1], (lines[-1], reason)
    other = whereabouts(keys, 1, "there:4", run=b"q" * 32)
    assert roster.learn(other) is None
    other.run = RUN
    assert roster.learn(other) is None  # signed for another run
    assert roster.address(1) == "there:2"


def test_a_peer_outdoes_what_it_said_in_another_life(keys: Path) -> None:
    identity = Identity.load(keys / "client-0")
    roster = Roster(0, RUN, 4, identity, identity.signer(), {}, print)
    roster.announce("new:1")
    old = whereabouts(keys, 0, "old:1")  # made later than the new one: the clock was set back
    new = roster.learn(old)
    assert new
    assert new.peers[0].address == "new:1"
    assert new.peers[0].counter > old.peers[0].counter
