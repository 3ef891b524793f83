"""Crowds and strangers: sockets that never greet, more clients than file descriptors, and what an operator reads."""

import errno
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_stream import LOCAL, Guest, ask, converse, hello, port, receive, serving, until_present, wait_until

from deployed import Command, eventually, flower_app, free_port
from fedshare.errors import RunHalted, UserError, exit_status
from fedshare.experiments import cli
from fedshare.machine.tally import Tally
from fedshare.transport.stream import callers, descriptors, journal, tls
from fedshare.transport.stream import line as line_module
from fedshare.transport.stream.callers import Callers, _peer
from fedshare.transport.stream.callers import one_place as _place
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.settings import Settings
from world import PATIENCE

NEVER = 3600.0  # a deadline that no test waits for
STRANGER = "127.0.0.2"
needs_loopback = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is this host on Linux alone")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(line_module, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(tls, "HANDSHAKE_DEADLINE", NEVER)


@contextmanager
def idle(port: int, count: int, source: str = STRANGER) -> Iterator[list[socket.socket]]:
    """So many connections, over which nothing is said."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))
            one.setblocking(False)
            made.append(stack.enter_context(one))
        yield made


def is_open(one: socket.socket) -> bool:
    try:
        while data := one.recv(4096):  # without TLS the server speaks first
            assert data
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


def open_of(sockets: list[socket.socket]) -> int:
    return sum(map(is_open, sockets))


@contextmanager
def descriptors_limited(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# Who only connects.


@needs_loopback
def test_of_one_address_the_oldest_that_say_nothing_are_closed_and_others_are_served() -> None:
    said: list[str] = []
    with serving(clients=1, callers=8, say=said.append) as listening:
        Guest(listening.address)
        until_present(listening, 0)
        with idle(port(listening), 100) as strangers:
            wait_until(lambda: open_of(strangers) == 8, "all but 8 are closed")
            assert [is_open(one) for one in strangers] == [False] * 92 + [True] * 8
            assert ask(listening, 0, b"x") == b"re x"
        assert len(said) < 20
        assert said[0] == f"{STRANGER}: closed a connection without a greeting; at most 8 of one address may be open"


@needs_loopback
def test_strangers_at_many_addresses_are_bounded_together() -> None:
    with serving(clients=1, callers=2) as listening, ExitStack() as stack:
        Guest(listening.address)
        until_present(listening, 0)
        strangers = [one for n in range(2, 42) for one in stack.enter_context(idle(port(listening), 2, f"127.0.0.{n}"))]
        wait_until(lambda: open_of(strangers) <= 16, "no more than 16 of 80 are left")
        assert ask(listening, 0, b"x") == b"re x"


def test_a_crowd_of_clients_behind_one_address_is_let_in_whoever_idles_there() -> None:
    with serving(clients=40, callers=2) as listening, idle(port(listening), 30, "127.0.0.1"):
        guests = [Guest(listening.address, id) for id in range(40)]
        until_present(listening, *range(40))
        sent = {listening.send(id, [b"%d" % id]): id for id in range(40)}
        answers = receive(listening, 40)
        assert {answer.ticket: answer.client for answer in answers} == sent
        assert all(answer.body == b"re %d" % answer.client for answer in answers)
        assert [guest.said for guest in guests] == [[]] * 40, "nobody was sent away"


def test_who_has_greeted_is_no_stranger_however_long_it_says_nothing() -> None:
    with serving(clients=30, callers=1) as listening:
        guests = [Guest(listening.address, id) for id in range(30)]
        until_present(listening, *range(30))
        with idle(port(listening), 20, "127.0.0.1") as strangers:
            wait_until(lambda: open_of(strangers) == 1, "all but one are closed")
        assert [guest.said for guest in guests] == [[]] * 30
        assert ask(listening, 29, b"x") == b"re x"


def test_a_connection_that_makes_no_call_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "IDLE_DEADLINE", 0.3)
    with serving(heartbeat=NEVER) as listening, idle(port(listening), 1, "127.0.0.1") as (one,):
        one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))  # HTTP/2's, which is correct
        wait_until(lambda: not is_open(one), "it is closed")


def test_a_greeting_is_short() -> None:
    with serving(clients=2) as listening:
        heard, _, details = converse(listening.address, hello(version="1" * 5000))
        assert heard == []
        assert details.endswith("sent a greeting of 5008 bytes; at most 4096 are taken")


@pytest.mark.parametrize(
    ("grpcs", "peer", "place"),
    [
        ("ipv4:192.0.2.7:4242", ("192.0.2.7", 4242), "192.0.2.7"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:4242", ("192.0.2.7", 4242), "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3::7%5D:4242", ("2001:db8:1:2:3::7", 4242), "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::7%25eth0%5D:4242", ("fe80::7", 4242), "fe80::/64"),
        ("unix:", ("unix:", 0), "unix:"),
    ],
)
def test_an_address_is_the_same_however_it_is_written(grpcs: str, peer: tuple[str, int], place: str) -> None:
    assert _peer(grpcs) == peer
    assert _place(peer[0]) == place


# File descriptors.


@needs_loopback
def test_strangers_never_take_the_descriptors_that_files_need() -> None:
    taken = len(os.listdir("/dev/fd"))
    attack = 300
    limit = taken + 2 * attack  # their ends are this process's, too
    with ExitStack() as stack:
        stack.enter_context(descriptors_limited(limit))
        listening = stack.enter_context(serving(clients=1, callers=10_000, reserve=limit - 150))
        strangers = stack.enter_context(idle(port(listening), attack))
        wait_until(lambda: open_of(strangers) <= 150, "no more are open than there is room for")
        for _ in range(attack - 200):
            stack.enter_context(Path(os.devnull).open())


def test_looking_at_connections_takes_one_descriptor_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made, most, plain = list[socket.socket](), [0], socket.socket

    def counted(*arguments: Any, **more: Any) -> socket.socket:
        one = plain(*arguments, **more)
        if "fileno" in more and threading.current_thread().name == "stream":
            made[:] = [*(other for other in made if other.fileno() >= 0), one]
            most[0] = max(most[0], len(made))
        return one

    with serving(clients=1, callers=4) as listening, idle(port(listening), 100, "127.0.0.1") as strangers:
        monkeypatch.setattr(callers.socket, "socket", counted)
        wait_until(lambda: open_of(strangers) <= 5, "all but few are closed")
    assert most == [1]


class _Counted(tuple[str, int]):
    """A peer that counts how often it is looked up."""

    looks = 0

    def __hash__(self) -> int:
        _Counted.looks += 1
        return super().__hash__()


@pytest.mark.parametrize("greeted", [False, True])
def test_a_look_at_a_crowd_takes_each_connection_a_few_times(greeted: bool) -> None:
    """A thousand that came at once were looked at a million times, and meanwhile nobody was let in."""
    looks = []
    for count in (200, 400):
        crowd = Callers(0, count, 64, 512, 10_000, Tally(lambda line: None))
        peers = [_Counted(("192.0.2.1", port)) for port in range(count)]
        for peer in peers[: count // 2 if greeted else 0]:
            crowd._greeted[peer] += 1
        _Counted.looks = 0
        crowd._limit(dict.fromkeys(peers, -1))
        looks.append(_Counted.looks)
    assert looks[1] < 3 * looks[0]


def test_who_has_hung_up_is_forgotten() -> None:
    crowd = Callers(0, 2, 64, 512, 10_000, Tally(lambda line: None))
    with crowd.greeted("ipv4:192.0.2.1:1"), crowd.greeted("ipv4:192.0.2.1:1"), crowd.greeted("ipv4:192.0.2.1:2"):
        assert len(crowd._greeted) == 2
    assert not crowd._greeted


def test_clients_beyond_the_limit_are_refused_before_anything_listens() -> None:
    with descriptors_limited(256):
        listening = StreamServer(LOCAL, None, Settings("1", clients=300))
        with pytest.raises(UserError, match=r"^300 clients need 444 file descriptors .* is 256 \(RLIMIT_NOFILE") as no:
            listening.start()
        assert "`ulimit -n 888`, or LimitNOFILE=888 in its systemd unit" in str(no.value)


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with descriptors_limited(100):
        assert descriptors.limit() == 100
        descriptors.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


APP = """
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
server, client = ServerApp(), ClientApp()

@client.query()
def answer(message, context):
    return Message(RecordDict(), reply_to=message)

@server.main()
def main(grid, context):
    files = [open("/dev/null") for _ in range(60)]
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    print(len(list(grid.send_and_receive(messages))), "answered beside", len(files), "open files")
"""


def limited(command: Command, soft: int, hard: int) -> Command:
    """`command`, which has only begun, with so many descriptors."""
    resource.prlimit(command.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    return command


@pytest.mark.process
@needs_loopback
def test_a_server_outlives_more_sockets_than_it_has_descriptors(tmp_path: Path) -> None:
    app, where = str(flower_app(tmp_path / "app", APP)), free_port()
    given = ("server", "--app", app, "--clients", "1", "--wait", str(PATIENCE), "--listen", f"127.0.0.1:{where}")
    with limited(Command(tmp_path, *given), 100, 300) as server:  # with 100 it would let nobody in
        server.until("listening on")
        with idle(where, 400) as strangers:
            eventually(lambda: open_of(strangers) <= 65, "no more are left than may be")
            with Command(tmp_path, "client", f"127.0.0.1:{where}", "--app", app, "--id", "0", "--gpu", "none"):
                assert server.wait() == 0, server.said
        assert "1 answered beside 60 open files" in server.said
        assert server.said.count("closed a connection without a greeting") < 20


@pytest.mark.process
def test_a_server_of_more_clients_than_descriptors_says_so_and_begins_nothing(tmp_path: Path) -> None:
    app = str(flower_app(tmp_path / "app", APP))
    with limited(Command(tmp_path, "server", "--app", app, "--clients", "300", "--listen", LOCAL), 200, 256) as server:
        assert server.wait() == 2, server.said
    (line,) = server.said.splitlines()
    assert line.startswith("fedshare: 300 clients need 444 file descriptors (128 for files), and the limit")


# What is the system's fault is worth starting again.


def wrapped(number: int) -> UserError:
    """As a config's part is that could not be made."""
    try:
        try:
            raise OSError(number, os.strerror(number), "somewhere")
        except OSError as error:
            raise UserError(f"client: {error}") from error
    except UserError as error:
        return error


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("kind", [wrapped, lambda number: OSError(number, os.strerror(number))])
def test_what_the_system_did_not_do_is_not_bad_input(
    kind: Callable[[int], Exception], number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise kind(number)

    monkeypatch.setattr(cli, "_dispatch", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["server"])
    assert ended.value.code == 1
    assert os.strerror(number) in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR])
def test_a_name_that_is_wrong_is(number: int) -> None:
    assert exit_status(OSError(number, os.strerror(number))) == 2
    assert exit_status(wrapped(number)) == 2


def test_a_halted_run_keeps_its_status() -> None:
    error = RunHalted("round 3: too few")
    error.__cause__ = OSError(errno.EMFILE, "")
    assert exit_status(error) == 3


# The log.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_same_line_about_one_is_said_once_in_a_while_and_the_others_are_counted() -> None:
    said, clock = list[str](), Clock()
    tally = Tally(said.append, 10.0, clock)
    for second in range(25):
        clock.now = float(second)
        for _ in range(100):
            tally.say("192.0.2.7", "no greeting")
    assert said == [
        "no greeting",
        "192.0.2.7: 999 more such lines in 10 s, the last: no greeting",
        "no greeting",
        "192.0.2.7: 999 more such lines in 10 s, the last: no greeting",
        "no greeting",
    ]


def test_whatever_is_said_about_however_many_the_log_is_bounded() -> None:
    said, clock = list[str](), Clock()
    tally = Tally(said.append, 10.0, clock)
    for n in range(20_000):
        tally.say(f"client {n % 5000}", f"line {n}")
    clock.now = 10.0
    tally.flush()
    assert len(said) < 80
    assert said[-1].endswith("more such lines in 10 s")
    assert len(tally._hidden) + len(tally._last) + len(tally._said) < 100


def test_what_changes_may_be_said_again() -> None:
    said = list[str]()
    tally = Tally(said.append, 10.0, Clock())
    for line in ("gone", "back", "gone"):
        tally.say("client 1", line, changes=True)
    assert said == ["gone", "back", "gone"]


def test_a_caller_that_is_refused_time_and_again_is_told_of_once() -> None:
    said: list[str] = []
    with serving(clients=2, say=said.append) as listening:
        for _ in range(30):
            converse(listening.address, hello(version="9"))
        for _ in range(10):
            converse(listening.address, b"\xff\xff")
        assert said == [
            "client 0 was refused: it runs fedshare 9 (stream 1), the server fedshare 1 (stream 1)",
            "127.0.0.1 was refused: it sent 2 bytes that are no frame of fedshare.v1",
        ]


def test_a_client_that_comes_and_goes_does_not_fill_the_log() -> None:
    said: list[str] = []
    with serving(clients=1, grace=60.0, say=said.append) as listening:
        for _ in range(30):
            assert converse(listening.address, hello(), end=True)[1] is None
        wait_until(lambda: listening.members.by_id[0].connection is None, "it has gone")
        assert 2 <= len(said) < 10


def test_who_was_refused_is_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "REFUSED", 5)
    with serving(clients=2) as listening:
        for id in range(100, 120):
            converse(listening.address, hello(client=id))
        assert len(listening.journal.refused) == 5
