"""A gate: several runs at one port, each with a server of its own, which may come, end and be killed by itself."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_callers import idle, needs_loopback, open_of
from test_stream import HEARTBEAT, LOCAL, Guest, ask, hello, identity, pki, receive, serving, until_present, wait_until

from deployed import Command, assert_equal, certificates, eventually, free_port, lines, simulated
from fedshare._proto.stream_pb2 import Down
from fedshare.errors import RunHalted, UserError
from fedshare.experiments import cli
from fedshare.identity.identity import Identity
from fedshare.transport.stream import handover, health, sockets, tls
from fedshare.transport.stream import line as line_module
from fedshare.transport.stream.diagnose import NotYet
from fedshare.transport.stream.gate import Gate
from fedshare.transport.stream.gate import Settings as GateSettings
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.service import METHOD
from world import PATIENCE

__all__ = ["pki"]  # a fixture


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(line_module, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sockets.folder(tmp_path / "gate")


class Running:
    """A gate in a thread, with a loop of its own."""

    def __init__(self, folder: Path, address: str = LOCAL, identity: Identity | None = None, **settings: Any) -> None:
        self.said: list[str] = []
        self._gate = Gate(address, identity, folder, GateSettings(heartbeat=HEARTBEAT, **settings), self.said.append)
        self._up, self._stop, self._loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._live(),))
        self._thread.start()
        assert self._up.wait(PATIENCE)
        self.address = self._gate.address

    async def _live(self) -> None:
        await self._gate.start()
        self._up.set()
        await self._stop.wait()
        await self._gate.close()

    def end(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE)


@pytest.fixture
def gate(folder: Path) -> Iterator[Running]:
    running = Running(folder)
    yield running
    running.end()


@contextmanager
def behind(folder: Path, name: str, **settings: Any) -> Iterator[StreamServer]:
    """The server of a run, for a gate."""
    with ExitStack() as stack:
        path = stack.enter_context(sockets.taken(folder, name, settings.get("clients", 0)))
        yield stack.enter_context(serving(None, f"unix:{path}", name=name, **settings))


# Who comes to which run.


def test_each_client_comes_to_the_run_that_it_names_and_sees_nothing_of_the_other(folder: Path, gate: Running) -> None:
    with behind(folder, "first", clients=2) as first, behind(folder, "second", clients=2) as second:
        guests = [Guest(gate.address, id, run=name) for name in ("first", "second") for id in (0, 1)]
        for server in (first, second):
            until_present(server, 0, 1)
        sent = {(server, server.send(n % 2, [b"%d" % n])): n for server in (first, second) for n in range(100)}
        for server in (first, second):
            for answer in receive(server, 100):
                assert answer.body == b"re %d" % sent[server, answer.ticket]
        body = bytes(range(256)) * 40_000  # 10 MB: 20 frames each way
        assert ask(first, 1, body) == b"re " + body
        first.close("")
        assert [guest.end() for guest in guests[:2]] == [None, None]
        assert ask(second, 0, b"x") == b"re x"
        assert [len(guest.asked) for guest in guests] == [50, 51, 51, 50]


def test_who_names_no_run_comes_to_the_only_one_and_stays_with_it(folder: Path, gate: Running) -> None:
    with behind(folder, "first") as first:
        guest = Guest(gate.address)
        until_present(first, 0)
        first.close()  # as one that will be started again
    with behind(folder, "second") as second:  # the only one now, and not where the guest was
        wait_until(lambda: any("no run 'first' here yet; runs here: second" in line for line in guest.said), "it waits")
        assert second.present() == []
        with behind(folder, "first") as first:
            until_present(first, 0)
            assert ask(first, 0, b"x") == b"re x"


def test_who_names_no_run_hears_which_there_are(folder: Path, gate: Running) -> None:
    with behind(folder, "first"), behind(folder, "second"):
        error = Guest(gate.address).end()
        assert isinstance(error, UserError)
        assert str(error) == f"{gate.address}: several runs are here: first, second; say which with --run"
        asked = health.ask(gate.address, None, 0, "1", "", PATIENCE)
        assert asked.refusal == "several runs are here: first, second; say which with --run"


def test_a_run_that_is_not_there_is_waited_for_and_given_up_by_name(folder: Path, gate: Running) -> None:
    late = Guest(gate.address, run="first")
    nameless = Guest(gate.address, 1)
    wait_until(lambda: any("no run 'first' here yet; runs here: none" in line for line in late.said), "it waits")
    wait_until(lambda: any("no run here yet" in line for line in nameless.said), "so does the other")
    with behind(folder, "first") as first:
        until_present(first, 0, 1)
        error = Guest(gate.address, run="second", patience=0.1).end()
        assert isinstance(error, NotYet)
        assert "no run 'second' here yet; runs here: first; given up after 0.1 s" in str(error)


@pytest.mark.parametrize("name", ["../first", "first\n", "First", "", ".first", "a" * 65, "a/b"])
def test_a_name_is_no_path(name: str, tmp_path: Path, folder: Path, gate: Running) -> None:
    with pytest.raises(UserError, match="is no name of a run; must be 1 to 64 of a-z"):
        sockets.run_name(name)
    if not name or "\n" in name:
        return  # gRPC does not send it
    with behind(sockets.folder(tmp_path / "other"), "first"), behind(folder, "second"):
        for run in (name, "../other/first"):
            error = Guest(gate.address, run=run).end()
            assert isinstance(error, UserError)
            assert "is no name of a run; must be 1 to 64 of a-z" in str(error)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("first", "it asks for run 'second'; here is 'first' alone"), ("", "it asks for run 'second'; here is one")],
)
def test_a_server_that_listens_itself_is_one_run(name: str, reason: str) -> None:
    with serving(name=name) as server:
        guest = Guest(server.address, run="second")
        error = guest.end()
        assert isinstance(error, UserError)
        assert f"client 0 was refused: {reason}" in str(error)
        assert reason in health.ask(server.address, None, 0, "1", "", PATIENCE, "second").refusal
        Guest(server.address, run=name)
        until_present(server, 0)


def test_a_refusal_and_its_reason_come_through(folder: Path, gate: Running) -> None:
    with behind(folder, "first", clients=1):
        for id, more in ((1, {}), (0, {"version": "2"})):
            error = Guest(gate.address, id, run="first", **more).end()
            assert isinstance(error, UserError)
            assert f"client {id} was refused: " in str(error)
        answer = health.ask(gate.address, None, 0, "1", "", PATIENCE, "first")
        assert (answer.refusal, abs(answer.ahead) < 60) == ("", True)
        assert health.health(gate.address, None, PATIENCE) == "SERVING"


def test_what_breaks_the_protocol_is_named_and_disturbs_nobody(folder: Path, gate: Running) -> None:
    with behind(folder, "first") as first:
        Guest(gate.address, run="first")
        until_present(first, 0)
        with grpc.insecure_channel(gate.address) as channel:
            call = channel.stream_stream(METHOD)(iter([b"\xff" * 100]), metadata=handover.asking("first"))
            with pytest.raises(grpc.RpcError) as raised:
                next(call)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "127.0.0.1" in raised.value.details(), "the caller's address, not the gate's"
        assert "that are no frame of fedshare.v1" in raised.value.details()
        assert ask(first, 0, b"x") == b"re x"


def test_a_run_that_ended_badly_says_why_through_the_gate(folder: Path, gate: Running) -> None:
    with behind(folder, "first") as first:
        guest = Guest(gate.address)
        until_present(first, 0)
        first.close("round 3: no client left")
        assert isinstance(error := guest.end(), RunHalted)
        assert str(error) == "the run halted: round 3: no client left"


# Who is who.


def test_the_server_of_a_run_knows_clients_by_their_certificates(folder: Path, pki: Path) -> None:
    running = Running(folder, identity=identity(pki, "ours/server"))
    address = running.address.replace("127.0.0.1", "localhost")
    said: list[str] = []
    try:
        with behind(folder, "first", clients=2, say=said.append) as first:
            Guest(address, 1, identity(pki, "ours/client-1"))
            until_present(first, 1)
            error = Guest(address, 1, identity(pki, "ours/client-0")).end()
            assert "its certificate is client 0's, but it says that it is client 1" in str(error)
            assert ask(first, 1, b"x") == b"re x"
    finally:
        running.end()


def forged(pki: Path) -> handover.Metadata:
    """What a gate says of client 1, at another address."""
    pem = identity(pki, "ours/client-1").certificate
    return (handover.PEER, "ipv4:192.0.2.7:4242"), (handover.CERTIFICATE, pem)


def greet(address: str, who: Identity | None, id: int, metadata: handover.Metadata) -> tuple[Down, Any]:
    """The first that a server says to a caller with such metadata, and the call."""
    channel = tls.channel(address, who, HEARTBEAT)
    greeting = threading.Event()

    def frames() -> Iterator[bytes]:
        yield hello(client=id)
        greeting.wait(PATIENCE)

    call = channel.stream_stream(METHOD)(frames(), metadata=metadata)
    try:
        return Down.FromString(next(call)), call
    finally:
        greeting.set()


@pytest.mark.parametrize("through", [False, True])
def test_a_client_cannot_say_itself_what_a_gate_says_of_it(through: bool, folder: Path, pki: Path) -> None:
    server_key, client_key = identity(pki, "ours/server"), identity(pki, "ours/client-0")
    said: list[str] = []
    with ExitStack() as stack:
        if through:
            running = Running(folder, identity=server_key)
            stack.callback(running.end)
            stack.enter_context(behind(folder, "first", clients=2, say=said.append))
            address = running.address
        else:
            address = stack.enter_context(serving(server_key, clients=2, say=said.append)).address
        address = address.replace("127.0.0.1", "localhost")
        down, _ = greet(address, client_key, 1, forged(pki))
        assert "its certificate is client 0's" in down.refusal.reason
        down, _ = greet(address, client_key, 0, forged(pki))
        assert down.WhichOneof("kind") == "welcome"
        assert not any("192.0.2.7" in line for line in said)


def test_behind_a_gate_the_caller_s_own_address_is_in_the_log(folder: Path, gate: Running) -> None:
    said: list[str] = []
    with behind(folder, "first", say=said.append), grpc.insecure_channel(gate.address) as channel:
        with pytest.raises(grpc.RpcError):
            next(channel.stream_stream(METHOD)(iter([b"\xff" * 100])))
        wait_until(lambda: any(line.startswith("127.0.0.1 was refused: ") for line in said), "it is said")


def test_only_a_gate_connects_to_the_socket(folder: Path) -> None:
    with behind(folder, "first") as first, grpc.insecure_channel(first.address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            next(channel.stream_stream(METHOD)(iter([hello()])))
        assert raised.value.details() == "only a gate connects here"
        assert first.present() == []


@needs_loopback
def test_strangers_at_the_gate_are_bounded_as_at_a_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_DEADLINE", 3600.0)
    running = Running(folder, callers=8)
    try:
        with behind(folder, "first", clients=1) as first:
            Guest(running.address)
            until_present(first, 0)
            wait_until(lambda: running._gate._callers.clients == 1, "the gate knows how many clients there are")
            with idle(int(running.address.rpartition(":")[2]), 100) as strangers:
                wait_until(lambda: open_of(strangers) == 8, "all but 8 are closed")
                assert ask(first, 0, b"x") == b"re x"
    finally:
        running.end()


# What may end.


def test_a_gate_that_is_started_again_costs_no_message(folder: Path, gate: Running) -> None:
    with behind(folder, "first") as first:
        at_work, goes_on = threading.Event(), threading.Event()

        def answer(body: bytearray) -> list[bytes]:
            at_work.set()
            assert goes_on.wait(PATIENCE)
            return [b"re ", bytes(body)]

        guest = Guest(gate.address, run="first", answer=answer)
        until_present(first, 0)
        ticket = first.send(0, [b"x"])
        assert at_work.wait(PATIENCE)
        gate.end()
        wait_until(lambda: any("waiting for" in line for line in guest.said), "the guest notices")
        goes_on.set()
        again = Running(folder, gate.address)
        try:
            (answered,) = receive(first, 1)
            assert (answered.ticket, answered.body, guest.asked) == (ticket, b"re x", [b"x"])
        finally:
            again.end()


def test_a_client_that_is_cut_off_is_gone_from_its_run_at_once(folder: Path, gate: Running) -> None:
    said: list[str] = []
    with behind(folder, "first", say=said.append) as first:
        _, call = greet(gate.address, None, 0, ())
        until_present(first, 0)
        call.cancel()
        wait_until(lambda: any(line.startswith("client 0 is gone: the connection broke off") for line in said), "it is")


def test_who_reads_slowly_holds_up_nobody_and_fills_no_memory(folder: Path, gate: Running) -> None:
    with behind(folder, "first") as first, ExitStack() as stack:
        _, call = greet(gate.address, None, 1, ())  # and reads no further
        stack.callback(call.cancel)
        Guest(gate.address, 0)
        until_present(first, 0, 1)
        sent = first.send(1, [b"x" * (64 << 20)])
        for n in range(20):
            assert ask(first, 0, b"%d" % n * 100_000) == b"re " + b"%d" % n * 100_000
        message = first.members.by_id[1].current
        assert message is not None
        assert (message.ticket, message.sent) == (sent, False), "the gate has not taken it all"


# Names and folders.


def test_of_two_servers_with_one_name_the_second_is_refused_and_a_killed_one_has_none(folder: Path) -> None:
    with behind(folder, "first"):
        taken = pytest.raises(UserError, match="--name first: another server has this name in ")
        with taken, sockets.taken(folder, "first", 0):
            pass
        assert sockets.here(folder) == ["first"]
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(sockets.path_of(folder, "first")))  # as kill -9 leaves one
    left.close()
    assert sockets.here(folder) == []
    with behind(folder, "first"):
        assert sockets.here(folder) == ["first"]
    assert list(folder.glob("*.sock")) == []


def test_a_folder_that_others_can_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    with pytest.raises(UserError, match=r"open: others can use this folder \(mode 0750\): chmod 0700 "):
        sockets.folder(tmp_path / "open")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: must be a folder"):
        sockets.folder(tmp_path / "file")
    assert sockets.folder(tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    deep = sockets.folder(tmp_path / ("d" * 100))
    with pytest.raises(UserError, match="the path of a socket may have 103 bytes"), sockets.taken(deep, "first", 0):
        pass


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["server", "--gate", "g"], "--gate: say by which name"),
        (["server", "--gate", "g", "--name", "A"], "--name 'A': is no name of a run"),
        (["server", "--name", "a b"], "--name 'a b': is no name of a run"),
        (["server", "--gate", "g", "--name", "a", "--keys", "keys"], "--keys: is the gate's affair"),
        (["server", "--gate", "g", "--name", "a", "--listen", "127.0.0.1:1"], "--listen: is the gate's affair"),
        (["client", "127.0.0.1:1", "--id", "0", "--run", "../a"], "--run '../a': is no name of a run"),
        (["gate", "--listen", "0.0.0.0:1", "--socket", "g"], "0.0.0.0:1: off this machine it takes TLS"),
        (["gate", "--listen", "127.0.0.1:1"], "the following arguments are required: --socket"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedshare: {reason}"), said
    assert said.count("\n") == 1


# As processes.

SMALL = ["data=digits", "model=logistic", "partition.clients=2", "client.batch_size=4", "client.epochs=1", "rounds=12"]
RUNS = {
    "first": [*SMALL, "strategy=local", "checkpoint_every=5"],
    "second": [*SMALL, "strategy=fedavg", "checkpoint_every=5", "seed=1"],
}
"""Two runs of two clients."""


@pytest.mark.process
def test_two_runs_at_one_port_end_as_simulated_though_gate_and_a_server_are_killed(tmp_path: Path) -> None:
    keys, address = certificates(tmp_path / "keys", 2), f"localhost:{free_port()}"
    sockets_folder = tmp_path / "gate"
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        started.append(Command(tmp_path, *arguments))
        return started[-1]

    def gate() -> Command:
        return start(
            *("gate", "--listen", address, "--keys", str(keys), "--socket", str(sockets_folder)), "--heartbeat", "2"
        )

    def server(name: str) -> Command:
        return start(
            *("server", *RUNS[name], "--gate", str(sockets_folder), "--name", name, "--resume", str(tmp_path / name)),
            *("--wait", str(PATIENCE), "--grace", str(PATIENCE), "--heartbeat", "2"),
        )

    def clients(name: str) -> Command:
        return start(
            *("client", address, "--keys", str(keys), "--id", "0,1", "--run", name, "--gpu", "none", "--stay"),
            *("--state", str(tmp_path / f"state-{name}"), "--heartbeat", "2", "--patience", str(PATIENCE)),
        )

    def reach(name: str, round: int, process: Command) -> None:
        rounds: Callable[[], int] = lambda: lines(tmp_path / name / "metrics.jsonl")  # noqa: E731
        eventually(lambda: rounds() >= round or process.process.poll() is not None, f"round {round} of {name}")
        assert rounds() >= round, process.said

    try:
        door, hosts = gate(), {name: clients(name) for name in RUNS}
        servers = {name: server(name) for name in RUNS}
        for name in RUNS:
            reach(name, 1, servers[name])
        door.kill()
        for name in RUNS:
            hosts[name].until("waiting for")
        door = gate()
        reach("first", 7, servers["first"])
        servers["first"].kill()  # past a checkpoint; the other run does not notice
        known = hosts["first"].said.count("no run 'first' here yet")
        hosts["first"].until("no run 'first' here yet", known + 1)
        servers["first"] = server("first")
        for one in servers.values():
            assert one.wait() == 0, one.said
        for host in hosts.values():
            host.until("waiting for the next run", 2)
        gone, _, rest = servers["second"].said.partition("is back")
        assert "client 0 is gone: the connection broke off" in gone, "the gate was killed as it ran"
        assert "broke off" not in rest, "and not disturbed by the end of the other run's server"
        door.signal(signal.SIGTERM)
        assert door.wait() == 130, door.said
    finally:
        for command in started:
            with command:
                pass
    for name, overrides in RUNS.items():
        assert_equal(tmp_path / name, simulated(tmp_path / f"simulated-{name}", *overrides))
