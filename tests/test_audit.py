"""The audit log: who joined and who was refused; what is altered shows, and nobody fills a disk with it."""

import errno
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_stream import Guest, hello, identity, pki, serving, until_present, wait_until

import fedshare
import forked
from deployed import Command, Deployment, eventually
from fedshare.errors import UserError
from fedshare.experiments.hosts.desk import Desk
from fedshare.identity import certificates
from fedshare.identity.identity import Identity
from fedshare.machine.devices import Place
from fedshare.runs import audit
from fedshare.runs.audit import Audit
from fedshare.transport.stream import client as client_module
from fedshare.transport.stream import entrance as entrance_module
from fedshare.transport.stream import handshakes, tls
from fedshare.transport.stream.frames import FRAME_LIMIT
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.service import METHOD
from world import PATIENCE

__all__ = ["pki"]  # a fixture
Entry = dict[str, Any]


def entries(path: Path) -> list[Entry]:
    return [dict(seal.covers) for seal in audit.read(path)]


def events(path: Path) -> list[str]:
    return [entry["event"] for entry in entries(path)]


def log(path: Path, *whats: Entry) -> Path:
    """A log with these entries, between those that any has."""
    made = Audit()
    made.open(path)
    made.note("listening", address="127.0.0.1:1")
    for what in whats:
        made.note("round", **what)
    made.note("ended", round=whats[-1]["round"])
    made.close()
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return log(tmp_path / "audit.jsonl", {"round": 1, "digest": "ab"}, {"round": 2, "digest": "cd"})


# What is altered shows.


def test_a_log_goes_on_with_the_same_chain(whole: Path) -> None:
    before = whole.read_bytes()
    log(whole, {"round": 3})
    assert whole.read_bytes().startswith(before)
    assert events(whole) == ["listening", "round", "round", "ended", "listening", "round", "ended"]
    assert audit.flaw(whole, 3) is None
    assert whole.stat().st_mode & 0o777 == 0o600


def test_any_flipped_bit_of_a_log_is_found(whole: Path) -> None:
    data = whole.read_bytes()
    for place in range(len(data) - 1):  # without its end, the last line is one that a kill cut short
        changed = bytearray(data)
        changed[place] ^= 1
        whole.write_bytes(bytes(changed))
        assert audit.flaw(whole, 2), f"byte {place}"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda lines: lines[1:], "line 1 does not follow from the lines before: the log was altered"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 2 does not follow"),
        (lambda lines: lines[:2] + lines[1:], "line 3 does not follow"),
        (lambda lines: lines[:1], "its last lines are missing: it ends at round 0, and the run has 2"),
        (lambda lines: [], "its last lines are missing"),
    ],
    ids=["removed", "moved", "repeated", "cut", "emptied"],
)
def test_what_is_altered_is_named(change: Callable[[list[str]], list[str]], found: str, whole: Path) -> None:
    whole.write_text("".join(change(whole.read_text().splitlines(keepends=True))))
    assert found in str(audit.flaw(whole, 2))


def test_a_log_that_was_altered_is_not_gone_on_with(whole: Path) -> None:
    altered = whole.read_text().replace('"digest":"ab"', '"digest":"ac"')
    whole.write_text(altered)
    with pytest.raises(UserError, match="line 2 does not follow from the lines before"):
        Audit().open(whole)
    assert whole.read_text() == altered


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_a_line_that_a_kill_cut_short_is_replaced_by_one_that_says_so(kept: int, whole: Path) -> None:
    data = whole.read_bytes()
    torn = data.splitlines(keepends=True)[-1][:kept]
    whole.write_bytes(data[: data[:-1].rfind(b"\n") + 1] + torn)
    log(whole, {"round": 3})
    found = entries(whole)
    assert [entry["event"] for entry in found][3:4] == (["repaired"] if kept else ["listening"])
    assert not kept or (found[3]["bytes"], found[3]["cut"]) == (kept, torn.decode())
    assert audit.flaw(whole, 3) is None


# Nobody fills a disk.


def test_strangers_add_a_bounded_number_of_lines_and_clients_are_all_entered(tmp_path: Path) -> None:
    made = Audit()
    made.open(tmp_path / "audit.jsonl")
    for number in range(20_000):
        place = f"192.0.2.{number % 250}"
        made.note("refused", place, address=place, reason=f"reason {number}")
    for client in range(500):
        made.note("joined", f"client {client}", client=client)
    made.close()
    found = events(tmp_path / "audit.jsonl")
    assert found.count("refused") == audit.IN_ALL
    assert found.count("joined") == 500


def test_one_who_is_refused_time_and_again_is_counted(tmp_path: Path) -> None:
    made = Audit(every=0.2)
    made.open(tmp_path / "audit.jsonl")
    for _ in range(1000):
        made.note("refused", "192.0.2.7", reason="another version")
    eventually(lambda: "more" in events(tmp_path / "audit.jsonl"), "the count of the others")
    made.close()
    said = next(entry for entry in entries(tmp_path / "audit.jsonl") if entry["event"] == "more")["what"]
    assert said.startswith("192.0.2.7: 999 more such lines in 0.2 s, the last: ")


def test_what_is_noted_before_there_is_a_file_is_kept_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_HELD", 5)
    made = Audit()
    for number in range(8):
        made.note("round", round=number)
    made.open(tmp_path / "audit.jsonl")
    made.close()
    found = entries(tmp_path / "audit.jsonl")
    assert [(entry["event"], entry.get("entries", entry.get("round"))) for entry in found] == [
        ("dropped", 3),
        *[("round", number) for number in range(3, 8)],
    ]


def test_a_full_disk_ends_the_round_and_no_entry_follows_a_gap(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole.read_bytes()

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(audit, "append", full)
    with pytest.raises(OSError, match="No space"), Desk(str(whole)) as desk:
        desk.log({"round": 3, "digest": "ef"})
    assert whole.read_bytes() == before


# Over real sockets.


@pytest.fixture
def recorded() -> list[Entry]:
    return []


def test_who_joins_and_who_is_refused_is_recorded_with_the_certificate(pki: Path, recorded: list[Entry]) -> None:
    with serving(identity(pki, "ours/server"), clients=2) as listening:
        listening.journal.record = lambda event, about, **what: recorded.append({"event": event, "about": about} | what)
        guest = Guest(listening.address, 0, identity(pki, "ours/client-0"))
        until_present(listening, 0)
        Guest(listening.address, 0, identity(pki, "ours/client-1")).end()
        guest.leave()
        wait_until(lambda: len(recorded) == 3, f"three entries, not {recorded}")
    about = certificates.described(identity(pki, "ours/client-0").certificate)
    assert about.keys() == {"serial", "sha256", "not_after"}
    assert recorded[0] == {"event": "joined", "about": "client 0", "client": 0, "address": "127.0.0.1"} | about
    refused = {"event": "refused", "about": "client 1", "client": 1, "address": "127.0.0.1"}
    assert recorded[1] == refused | certificates.described(identity(pki, "ours/client-1").certificate) | {
        "reason": "its certificate is client 1's, but it says that it is client 0"
    }
    assert recorded[2] == recorded[0] | {"event": "gone", "reason": "it left"}


def _second_greeting(listening: StreamServer, own: Identity) -> None:
    def frames() -> Iterator[bytes]:
        yield hello()
        until_present(listening, 0)
        yield hello()

    with tls.channel(listening.address, own, 5.0) as channel, pytest.raises(grpc.RpcError):
        list(channel.stream_stream(METHOD)(frames(), timeout=PATIENCE))


def _broken_off(listening: StreamServer, own: Identity) -> None:
    with tls.channel(listening.address, own, 5.0) as channel:
        call = channel.stream_stream(METHOD)(iter([hello()]), timeout=PATIENCE)
        next(call)
        until_present(listening, 0)
        call.cancel()


def _expelled(listening: StreamServer, own: Identity) -> None:
    guest = Guest(listening.address, 0, own)
    until_present(listening, 0)
    listening.expel(0, "the operator has banned it")
    guest.end()


def _barred(listening: StreamServer, own: Identity) -> None:
    listening.entrance.banned = {0: "sends garbage"}
    Guest(listening.address, 0, own).end()


def _mute(listening: StreamServer, own: Identity) -> None:
    with tls.channel(listening.address, own, 5.0) as channel, pytest.raises(grpc.RpcError):
        list(channel.stream_stream(METHOD)(iter([b""]), timeout=PATIENCE))


def _too_long(listening: StreamServer, own: Identity) -> None:
    """A frame for which the server's gRPC ends the call: the call has no address from then on."""
    waits, greeting = threading.Event(), entrance_module.first_frame

    async def awaited(context: grpc.aio.ServicerContext) -> object:
        waits.set()
        return await greeting(context)

    def frames() -> Iterator[bytes]:
        assert waits.wait(PATIENCE)
        yield bytes(2 * FRAME_LIMIT)

    credentials = grpc.ssl_channel_credentials(own.ca, own.key, own.certificate)
    unlimited = [("grpc.max_send_message_length", -1)]
    with (
        pytest.MonkeyPatch.context() as patch,
        grpc.secure_channel(listening.address, credentials, unlimited) as channel,
    ):
        patch.setattr(entrance_module, "first_frame", awaited)
        with pytest.raises(grpc.RpcError, match="larger than max"):
            list(channel.stream_stream(METHOD)(frames(), timeout=PATIENCE))


ENDS: dict[str, tuple[Callable[[StreamServer, Identity], None], str, str]] = {
    "a second greeting": (_second_greeting, "gone", "it sent a second greeting"),
    "a connection that broke off": (_broken_off, "gone", "the connection broke off"),
    "expelled": (_expelled, "gone", "the operator has banned it"),
    "barred": (_barred, "refused", "the operator has banned it: sends garbage"),
    "no greeting": (_mute, "refused", "it sent something else before its greeting"),
    "a frame too long": (_too_long, "refused", "it sent no greeting"),
}


@pytest.mark.parametrize(("act", "event", "reason"), ENDS.values(), ids=ENDS)
def test_every_entry_about_a_client_has_its_number_its_address_and_its_certificate(
    act: Callable[[StreamServer, Identity], None], event: str, reason: str, pki: Path, recorded: list[Entry]
) -> None:
    said: list[str] = []
    own = identity(pki, "ours/client-0")
    with serving(identity(pki, "ours/server"), clients=2, say=said.append) as listening:
        listening.journal.record = lambda event, about, **what: recorded.append({"event": event, "about": about} | what)
        act(listening, own)
        wait_until(lambda: any(entry["event"] == event for entry in recorded), f"the entry, not {recorded}")
    about = {"about": "client 0", "client": 0, "address": "127.0.0.1"} | certificates.described(own.certificate)
    assert recorded[-1] == about | {"event": event, "reason": reason}
    assert all(entry | about == entry for entry in recorded)
    assert all(line.startswith("client 0 ") for line in said)


def test_who_is_refused_by_the_run_is_entered_with_what_is_known_of_it(pki: Path, tmp_path: Path) -> None:
    """As one that leaves while it is asked who it is, or says what cannot be."""
    own = identity(pki, "ours/client-0")
    with Desk(str(tmp_path / "audit.jsonl")) as desk, serving(identity(pki, "ours/server"), clients=2) as listening:
        desk.serve(listening)
        Guest(listening.address, 0, own)
        until_present(listening, 0)
        desk.refused("gone since 30 s ago", 0)
        desk.refused("its weights are others", 1)
    found = [entry for entry in entries(tmp_path / "audit.jsonl") if entry["event"] == "refused"]
    about = {"client": 0, "address": "127.0.0.1"} | certificates.described(own.certificate)
    assert found[0] == about | {"at": found[0]["at"], "event": "refused", "reason": "gone since 30 s ago"}
    assert found[1] == {"at": found[1]["at"], "event": "refused", "client": 1, "reason": "its weights are others"}


def shake(address: str, ca: Path, shown: Path | None = None, host: str = "localhost") -> None:
    """One TLS handshake, by the standard library, as far as it gets."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    if shown:
        context.load_cert_chain(shown / "client.crt", shown / "client.key")
    host_and_port = address.rpartition(":")
    with socket.create_connection((host_and_port[0], int(host_and_port[2])), 60) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                while secure.recv(100):
                    pass
        except OSError:
            pass


def plaintext(address: str, data: bytes) -> None:
    host, _, number = address.rpartition(":")
    with socket.create_connection((host, int(number)), 60) as plain:
        plain.sendall(data)
        try:
            while plain.recv(100):
                pass
        except OSError:
            pass


def test_a_server_that_does_not_read_grpcs_log_says_from_where_all_the_same(pki: Path, recorded: list[Entry]) -> None:
    said: list[str] = []
    with serving(identity(pki, "ours/server"), say=said.append) as listening:
        listening.journal.record = lambda event, about, **what: recorded.append({"event": event} | what)
        shake(listening.address, pki / "ours" / "ca" / "ca.crt")
        wait_until(lambda: bool(recorded), "an entry")
        Guest(listening.address, 0, identity(pki, "ours/client-0"))  # who is no stranger, and stays so
        until_present(listening, 0)
        plaintext(listening.address, b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: len(recorded) == 3, "the second")
    assert said[0] == f"127.0.0.1: {handshakes.UNKNOWN}"
    assert [entry["event"] for entry in recorded] == ["refused", "joined", "refused"]
    assert recorded[0] == {"event": "refused", "address": "127.0.0.1", "reason": handshakes.UNKNOWN}


def test_a_handshake_that_fails_behind_a_sweep_is_reported_without_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    said: list[tuple[object, str]] = []
    one = handshakes.Handshakes(set, lambda peer, reason: said.append((peer, reason)))
    one.informed = True
    one._next = 200.0  # no time to look
    one.begins()
    one.sweep()  # it counts as not seen, and has not failed yet
    one.failed("it speaks no TLS")
    for _ in range(8):
        now += 0.25
        one.sweep()
    assert said == [(None, "the TLS handshake failed: it speaks no TLS")]


def test_a_flood_of_handshakes_is_looked_at_for_a_part_of_the_time_alone() -> None:
    looks = 0

    def found() -> set[tuple[str, int]]:
        nonlocal looks
        looks += 1
        return {("192.0.2.7", looks)}

    said: list[str] = []
    one = handshakes.Handshakes(found, lambda peer, reason: said.append(reason))
    one._next = float("inf")  # no time
    for _ in range(1000):
        one.begins()
    assert looks == 0
    one.informed = True
    one.failed("it has no certificate")
    one.sweep()
    assert said == ["the TLS handshake failed: it has no certificate"]


@pytest.fixture(scope="module")
def strangers(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, Path, Deployment]]:
    """A server of three clients that nobody joins, with a log of its own."""
    folder = tmp_path_factory.mktemp("strangers")
    with Deployment(folder, pki / "ours", "data=digits", "model=logistic", "partition.clients=2", "rounds=1") as made:
        server = made.server("--audit", str(folder / "log.jsonl"))
        server.until("listening on")
        yield server, folder / "log.jsonl", made


TLS: dict[str, tuple[Callable[[str, Path], None], str]] = {
    "no certificate": (lambda to, pki: shake(to, pki / "ours/ca/ca.crt"), "it has no certificate"),
    "another authority": (
        lambda to, pki: shake(to, pki / "ours/ca/ca.crt", pki / "other/client-0"),
        "another authority has signed its certificate",
    ),
    "expired": (
        lambda to, pki: shake(to, pki / "ours/ca/ca.crt", pki / "old/client-0"),
        "its certificate has expired",
    ),
    "plaintext": (lambda to, _: plaintext(to, b"GET / HTTP/1.1\r\n\r\n"), "it speaks no TLS"),
    "gRPC in the clear": (lambda to, _: plaintext(to, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "it speaks no TLS"),
}


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="each has an address of its own, which this host is on Linux alone")
@pytest.mark.parametrize(("call", "reason"), TLS.values(), ids=TLS)
def test_a_handshake_that_fails_is_logged_with_address_and_reason(
    call: Callable[[str, Path], None],
    reason: str,
    strangers: tuple[Command, Path, Deployment],
    pki: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, path, made = strangers
    source = f"127.0.0.{10 + list(TLS.values()).index((call, reason))}"
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda to, wait: connect(to, wait, (source, 0)))
    said = f"{source}: the TLS handshake failed: {reason}"
    reported = [f"{place}: the TLS handshake failed: {reason}" for place in (source, "others")]

    def more(than: int) -> bool:
        return sum(map(server.said.count, reported)) > than

    while said not in server.said:  # a server that has just looked for connections reports one without its address
        seen = sum(map(server.said.count, reported))
        call(made.address, pki)
        eventually(partial(more, seen), f"{said!r}:\n{server.said}")
    eventually(lambda: any(entry.get("address") == source for entry in entries(path)), "its entry")
    (entry,) = [entry for entry in entries(path) if entry.get("address") == source]
    assert (entry["event"], entry["reason"]) == ("refused", f"the TLS handshake failed: {reason}")
    assert "I1" not in server.said, "no line of gRPC's own"


@pytest.mark.process
def test_a_client_of_another_version_is_refused_in_a_line_on_both_sides(
    strangers: tuple[Command, Path, Deployment], tmp_path: Path
) -> None:
    server, path, made = strangers
    program = "import sys, fedshare; fedshare.__version__ = '0.0.9'\n"
    program += "from fedshare.experiments.cli import main; main(sys.argv[1:])"
    arguments = ("client", made.address, "--keys", str(made.keys), "--id", "1", "--gpu", "none")
    environment = os.environ | Place(None, None, 1).environ()
    done = forked.run("-c", program, *arguments, cwd=tmp_path, env=environment, timeout=PATIENCE)
    reason = f"it runs fedshare 0.0.9 (stream 1), the server fedshare {fedshare.__version__} (stream 1)"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"fedshare: {made.address}: client 1 was refused: {reason}"
    assert "Traceback" not in done.stderr
    server.until(f"client 1 was refused: {reason}")
    eventually(lambda: any(entry.get("client") == 1 for entry in entries(path)), "its entry")
    (entry,) = [entry for entry in entries(path) if entry.get("client") == 1]
    assert entry["reason"] == reason
    assert entry["serial"]


@pytest.mark.parametrize(("mine", "theirs"), [(1, 2), (2, 1)], ids=["older client", "newer client"])
def test_another_protocol_is_refused_by_name_in_both_directions(
    mine: int, theirs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PROTOCOL", mine)
    monkeypatch.setattr(entrance_module, "PROTOCOL", theirs)
    said: list[str] = []
    with serving(say=said.append) as listening:
        error = Guest(listening.address).end()
        line = f"client 0 was refused: it runs fedshare 1 (stream {mine}), the server fedshare 1 (stream {theirs})"
        assert str(error) == f"{listening.address}: {line}"
        assert isinstance(error, UserError)
        assert said == [line]
