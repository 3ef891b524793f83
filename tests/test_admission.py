"""Who is let in: the operator's lists, keys made on clients' hosts, and certificates renewed while all goes on."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from test_stream import HEARTBEAT, LOCAL, Guest, ask, hello, receive, until_present, wait_until

from deployed import Deployment
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.experiments.commands import doctor
from fedshare.identity import certificates, enrolment, keys, pem
from fedshare.identity.admission import ALLOWED, DENIED, Admission, Caller, Roll
from fedshare.identity.authority import AUTHORITY_LIFE, Authority
from fedshare.identity.identity import Identity, endings
from fedshare.machine import files
from fedshare.transport.stream import line as line_module
from fedshare.transport.stream import members as members_module
from fedshare.transport.stream.diagnose import NotYet
from fedshare.transport.stream.health import ask as ask_only
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.service import METHOD
from fedshare.transport.stream.settings import Settings
from world import PATIENCE

BARRED, REVOKED = "the operator has barred this client", "its key has been revoked"
Say = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(line_module, "LONGEST_PAUSE", 0.2)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("admission") / "keys"
    keys.make(folder, ["localhost"], clients=3, days=365)
    return folder


@pytest.fixture
def pki(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "keys")


@pytest.fixture
def fedshare(capfd: pytest.CaptureFixture[str]) -> Say:
    """One command: its exit status, and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


@contextmanager
def door(pki: Path | None, said: list[str] | None = None, address: str = LOCAL, **given: Any) -> Iterator[StreamServer]:
    """A server with the lists beside its certificate, or those given as `deny` and `allow`."""
    lines = [] if said is None else said
    identity = Identity.load(pki / "server") if pki else None
    lists = pki / "server" if pki else None, given.pop("deny", None), given.pop("allow", None), lines.append
    settings = {"version": "1", "heartbeat": HEARTBEAT, "grace": PATIENCE, **given}
    listening = StreamServer(address, identity, Settings(**settings), lines.append)
    listening.entrance.admission = Admission.of(*lists)
    listening.start()
    try:
        yield listening
    finally:
        listening.close("")


def guest(server: StreamServer, pki: Path, id: int) -> Guest:
    return Guest(server.address, id, Identity.load(pki / f"client-{id}"))


def refusal(guest: Guest) -> str:
    """What a client heard that was not let in, or no longer."""
    error = guest.end()
    assert isinstance(error, UserError)
    assert not isinstance(error, NotYet)
    assert "\n" not in str(error)
    return str(error)


# Lists


@pytest.mark.parametrize(("who", "reason"), [("0", BARRED), ("client-0", REVOKED)])
def test_who_is_revoked_is_cut_off_and_not_let_in_again(pki: Path, fedshare: Say, who: str, reason: str) -> None:
    said: list[str] = []
    with door(pki, said) as server:
        lasting, gone = guest(server, pki, 1), guest(server, pki, 0)
        until_present(server, 0, 1)
        asleep = threading.Event()
        gone._answer = lambda body: [b"late"] if asleep.wait(PATIENCE) else []  # it is at work
        ticket = server.send(0, [b"train"])
        status, line = fedshare("keys", "revoke", pki, who, "--why", "its disk was stolen")
        assert status == 0
        assert f"{pki}/server/denied: added " in line
        (answer,) = receive(server, 1)
        assert (answer.ticket, answer.body, answer.reason) == (ticket, None, reason)
        asleep.set()
        assert refusal(gone) == f"{server.address}: client 0 was refused: {reason}"
        assert said.count(f"client 0 is gone: {reason}") == 1
        assert refusal(guest(server, pki, 0)).endswith(f": client 0 was refused: {reason}")
        assert said[-1] == f"client 0 was refused: {reason}"
        told = ask_only(server.address, Identity.load(pki / "client-0"), 0, "1", "", PATIENCE)
        assert told.refusal is not None
        assert reason in told.refusal
        assert server.present() == [1]
        assert ask(server, 1, b"x") == b"re x"
        assert lasting.error is None
    assert "its disk was stolen" in (pki / "server" / DENIED).read_text()
    assert not any("stolen" in line for line in said)


def test_who_is_taken_off_the_list_is_let_in_again(pki: Path, fedshare: Say) -> None:
    fedshare("keys", "revoke", pki, 0, "client-1")
    with door(pki) as server:
        for id in (0, 1):
            refusal(guest(server, pki, id))
        status, line = fedshare("keys", "revoke", pki, "client-1", 0, 2, "--undo")
        assert status == 0
        assert f"{pki}/server/denied: has not client 2" in line
        for id in (0, 1):
            guest(server, pki, id)
        until_present(server, 0, 1)


def test_a_client_whose_key_was_lost_comes_back_with_another(pki: Path, fedshare: Say, tmp_path: Path) -> None:
    lost = shutil.copytree(pki / "client-0", tmp_path / "thief" / "client-0")
    fedshare("keys", "revoke", pki, pki / "client-0" / "client.crt")
    shutil.rmtree(pki / "client-0")
    keys.make(pki, ["localhost"], clients=3, days=365)
    with door(pki) as server:
        guest(server, pki, 0)
        until_present(server, 0)
        assert refusal(guest(server, lost.parent, 0)).endswith(REVOKED)
        assert server.present() == [0]


def test_a_renewed_certificate_does_not_bring_a_revoked_key_back(pki: Path, fedshare: Say) -> None:
    fedshare("keys", "revoke", pki, "client-0")
    (pki / "client-0" / "client.crt").unlink()
    shutil.copy(pki / "client-0" / "client.key", pki / "key")
    ca = Authority.load(pki / "ca", None)
    assert ca is not None
    held = pem.private_key(pki / "client-0" / "client.key").public_key()
    fresh = ca.certify("client-0", held, [certificates.client_name(0)], timedelta(days=1))
    (pki / "client-0" / "client.crt").write_bytes(certificates.pem_of(fresh))
    with door(pki) as server:
        assert refusal(guest(server, pki, 0)).endswith(REVOKED)


def test_one_certificate_is_barred_by_its_fingerprint_as_openssl_writes_it(pki: Path) -> None:
    digest = certificates.load(pki / "client-0" / "client.crt").fingerprint(hashes.SHA256()).hex()
    (pki / "server" / DENIED).write_text(f"certificate {digest.upper()}\nend\n")
    with door(pki) as server:
        assert refusal(guest(server, pki, 0)).endswith("its certificate has been revoked")
        guest(server, pki, 1)
        until_present(server, 1)


def test_without_certificates_a_list_goes_by_numbers(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("client 3-5\nend\n")
    with door(None, deny=str(tmp_path / "list")) as server:
        for id in (3, 5):
            assert refusal(Guest(server.address, id)).endswith(BARRED)
        Guest(server.address, 6)
        until_present(server, 6)


def test_with_a_list_of_those_allowed_nobody_else_is(pki: Path) -> None:
    said: list[str] = []
    reason = "it is not on the operator's list of those that are let in"
    with door(pki, said) as server:
        one, other = guest(server, pki, 0), guest(server, pki, 1)
        until_present(server, 0, 1)
        files.write_atomically(pki / "server" / ALLOWED, "client 1-2\nend\n")
        assert refusal(one).endswith(f": client 0 was refused: {reason}")
        assert other.error is None
        assert server.present() == [1]
        files.write_atomically(pki / "server" / ALLOWED, "client 0\nclient 1\nend\n")
        wait_until(lambda: sum("read again" in line for line in said) == 2, "it is read")
        guest(server, pki, 0)
        until_present(server, 0, 1)
        files.write_atomically(pki / "server" / DENIED, "client 0\nend\n")  # and this list comes first
        until_present(server, 1)


def test_a_client_that_reads_nothing_is_cut_off_too(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "CLOSE_DEADLINE", 0.1)
    over = threading.Event()

    def frames() -> Iterator[bytes]:
        yield hello()
        over.wait(PATIENCE)

    identity = Identity.load(pki / "client-0")
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    with door(pki) as server, grpc.secure_channel(server.address, credentials) as channel:
        call = channel.stream_stream(METHOD)(frames())
        next(call)  # the welcome; nothing is read after it
        server.send(0, [bytes(64 << 20)])
        wait_until(lambda: bool(server.members.by_id[0].current), "it is on its way")
        files.write_atomically(pki / "server" / DENIED, "client 0\nend\n")
        (answer,) = receive(server, 1)
        assert answer.reason == BARRED
        wait_until(lambda: not server._host._newcomers.callers._greeted, "its stream has ended")
        over.set()
    assert server.present() == []


KEY = "5b" * 32
DAMAGED: dict[str, tuple[bytes | None, str]] = {
    "cut in a line": (b"client 0\nclien", "line 2: 'clien' is no entry; must be one of: client NUMBER, client FROM-TO"),
    "cut in a number": (b"client 0\nclient 1", "must end with the line `end`: it is half-written, or was cut off"),
    "cut after a line": (b"client 0\n", "must end with the line `end`"),
    "empty": (b"", "must end with the line `end`"),
    "gone": (None, "No such file"),
    "two in one": (b"client 0\nend\nclient 1\nend\n", "line 3: follows the line `end`, which must be the last"),
    "a digest too short": (f"key {KEY[:-1]}\nend\n".encode(), "is no entry"),
    "no number": (b"client -1\nend\n", "is no entry"),
    "no digit of ours": ("client \u0663\nend\n".encode(), "is no entry"),
    "backwards": (b"client 9-3\nend\n", "line 1: client 9-3: begins after its end"),
    "bytes": (b"\xff\xfe\0\1", "must be text in UTF-8"),
    "a terminal's": (b"client \x1b[2J\nend\n", r"line 1: 'client \\x1b[2J' is no entry"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_list_opens_no_door_and_shuts_none(pki: Path, kind: str) -> None:
    data, sentence = DAMAGED[kind]
    denied = pki / "server" / DENIED
    denied.write_text("client 0\nend\n")
    said: list[str] = []
    with door(pki, said) as server:
        lasting = guest(server, pki, 1)
        until_present(server, 1)
        denied.unlink() if data is None else denied.write_bytes(data)
        assert refusal(guest(server, pki, 0)).endswith(BARRED)
        assert ask(server, 1, b"x") == b"re x"
        complaints = [line for line in said if str(denied) in line]
        assert len(complaints) == 1
        assert sentence in complaints[0]
        assert complaints[0].endswith("; what it said before stays in force")
        assert complaints[0].isprintable()
        denied.write_text("end\n")  # in place, as an editor may
        wait_until(lambda: said[-1].endswith("denied: read again: 0 entries"), "it is read again")
        guest(server, pki, 0)
        until_present(server, 0, 1)
        assert lasting.error is None


@pytest.mark.parametrize("kind", [kind for kind in DAMAGED if kind != "gone"])
def test_a_server_does_not_start_with_a_damaged_list(pki: Path, fedshare: Say, kind: str) -> None:
    data, sentence = DAMAGED[kind]
    assert data is not None
    (pki / "server" / DENIED).write_bytes(data)
    with pytest.raises(UserError) as caught:
        Admission.of(pki / "server", None, None, print)
    assert sentence in str(caught.value)
    status, line = fedshare("keys", "revoke", pki, 2)
    assert status == 2
    assert sentence in line
    assert (pki / "server" / DENIED).read_bytes() == data


def test_a_list_that_is_named_must_be_there(tmp_path: Path, fedshare: Say) -> None:
    for flag in ("--deny", "--allow"):
        missing = tmp_path / "none"
        status, line = fedshare("server", "data=digits", "--listen", LOCAL, flag, missing)
        assert (status, line) == (2, f"fedshare: {missing}: No such file or directory\n")


def test_doctor_reads_the_lists(pki: Path, fedshare: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHECKS", {doctor._keys: PATIENCE})
    fedshare("keys", "revoke", pki, 1, 2)
    status, said = fedshare("doctor", "--keys", pki)
    assert status == 0
    assert f"ok       {pki}/server/denied: 2 entries" in said
    (pki / "server" / ALLOWED).write_text("client 1\n")
    status, said = fedshare("doctor", "--keys", pki)
    assert status == 2
    assert f"FAILED   {pki}/server/allowed: must end with the line `end`" in said


def test_notes_and_spaces_in_a_list_do_not_matter(tmp_path: Path) -> None:
    roll = Roll.parse(f"# a note\n\n  client   3 # why\r\nkey {KEY}\nend  # so\n\n", tmp_path)
    assert [roll.match(Caller(id)) for id in (2, 3, 4)] == [None, "client", None]
    assert roll.match(Caller(2, KEY)) == "key"
    assert roll.match(Caller(2, "", KEY)) is None


def test_revoking_twice_or_at_once_loses_nothing(pki: Path) -> None:
    threads = [threading.Thread(target=enrolment.revoke, args=(pki, [str(id)])) for id in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(each.start for each in Roll.read(pki / "server" / DENIED).clients) == [*range(20)]
    (line,) = enrolment.revoke(pki / "server", ["7"])  # on the server's host there is no more than its folder
    assert line.endswith("denied: has already client 7")


def test_whom_to_revoke_must_be_a_client(pki: Path, fedshare: Say, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("client 3")
    for who, sentence in {
        "client-9": "client-9: must be a client's number, client-N, or its certificate or request in PEM; there is no",
        str(tmp_path / "text"): "text: must be a client's number, client-N, or its certificate or request in PEM",
        str(pki / "server" / "server.crt"): "server.crt: must name one client, as fedshare:client:3",
        "-1": "unrecognized arguments: -1",
    }.items():
        status, line = fedshare("keys", "revoke", pki, who)
        assert status == 2
        assert sentence in line or who == "-1"
        assert line.count("\n") == 1
    status, line = fedshare("keys", "revoke", tmp_path, 3)
    assert "holds no server's folder" in line
    assert not (pki / "server" / DENIED).exists()


# Keys that are made on clients' hosts


def enrol(pki: Path, host: Path, client: int, **more: Any) -> list[str]:
    enrolment.request(host, client)
    sent = shutil.copy(host / f"client-{client}" / f"client-{client}.csr", pki.parent / "sent.csr")
    lines = enrolment.sign(pki, Path(sent), 365, None, **more)
    enrolment.accept(host, pki / f"client-{client}" / f"client-{client}.pem")
    return lines


def test_a_key_made_on_its_host_stays_there_and_lets_its_client_in(pki: Path, tmp_path: Path, fedshare: Say) -> None:
    host = tmp_path / "host"
    status, line = fedshare("keys", "request", host, "--client", 7)
    assert status == 0
    made = {path.name: path.stat().st_mode & 0o777 for path in (host / "client-7").iterdir()}
    assert made.keys() == {"client.key", "client-7.csr", "supernode", "supernode.pub"}
    assert made["client.key"] == made["supernode"] == 0o600
    assert (host / "client-7").stat().st_mode & 0o777 == 0o700
    key = (host / "client-7" / "client.key").read_bytes()
    status, signed = fedshare("keys", "sign", pki, host / "client-7" / "client-7.csr", "--client", 7)
    assert status == 0
    shown = line.partition("the key is ")[2][:16]
    assert f"for the key {shown}, by the authority " in signed
    assert {path.name for path in (pki / "client-7").iterdir()} == {
        "ca.crt",
        "client.crt",
        "client-7.csr",
        "client-7.pem",
    }
    assert not any(b"PRIVATE" in path.read_bytes() for path in (pki / "client-7").iterdir())
    status, accepted = fedshare("keys", "accept", host, pki / "client-7" / "client-7.pem")
    assert status == 0
    assert accepted.partition("by the authority ")[2].strip() == signed.partition("by the authority ")[2][:16]
    assert (host / "client-7" / "client.key").read_bytes() == key
    with door(pki) as server:
        guest(server, host, 7)
        until_present(server, 7)


def test_it_is_renewed_for_the_same_key_either_way(pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tmp_path / "host"
    enrol(pki, host, 1, replace=True)
    first = certificates.load(host / "client-1" / "client.crt")
    enrol(pki, host, 1)  # the same request again: no flag is needed
    second = certificates.load(host / "client-1" / "client.crt")
    assert first.serial_number != second.serial_number
    assert first.public_key() == second.public_key()
    later = certificates.now() + timedelta(days=340)
    monkeypatch.setattr(certificates, "now", lambda: later)
    (line,) = (line for line in keys.make(pki, ["localhost"], 3, 365) if "client-1" in line)
    assert "client.key" not in line
    assert not (pki / "client-1" / "client.key").exists()
    enrolment.accept(host, pki / "client-1" / "client-1.pem")
    third = certificates.load(host / "client-1" / "client.crt")
    assert third.not_valid_after_utc > second.not_valid_after_utc
    assert third.public_key() == first.public_key()


def test_a_second_key_of_a_client_takes_a_flag_and_revokes_the_first(pki: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with door(pki, said) as server:
        old = guest(server, pki, 1)
        before = shutil.copytree(pki / "client-1", tmp_path / "old" / "client-1")
        until_present(server, 1)
        with pytest.raises(UserError, match=r"client 1 has a certificate for another key until 2.*--replace") as caught:
            enrol(pki, tmp_path / "host", 1)
        assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in (pki / "client-1").iterdir()} == {
            path.name: path.read_bytes() for path in before.iterdir()
        }
        assert old.error is None
        enrol(pki, tmp_path / "host", 1, replace=True)
        assert refusal(old).endswith(REVOKED)
        guest(server, tmp_path / "host", 1)
        until_present(server, 1)
        assert refusal(guest(server, before.parent, 1)).endswith(REVOKED)
    keys.make(pki, ["localhost"], clients=3, days=365)
    assert not (pki / "client-1" / "client.key").exists()


def test_a_certificate_that_has_ended_needs_no_flag(pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = certificates.now() + timedelta(days=366)
    monkeypatch.setattr(certificates, "now", lambda: later)
    enrol(pki, tmp_path / "host", 1)
    assert Identity.load(tmp_path / "host" / "client-1").client_id == 1
    assert not (pki / "server" / DENIED).exists()


def asks(*names: str, key: Any = None, **more: Any) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificates.common_name("client-7"))
    if names:
        given = [x509.UniformResourceIdentifier(name) if ":" in name else x509.DNSName(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(given), critical=False)
    key = key or ec.generate_private_key(ec.SECP256R1())
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


def forged() -> bytes:
    """A request whose signature is by no key of its own."""
    der = bytearray(x509.load_pem_x509_csr(asks("fedshare:client:7")).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


ONE = "must name one client, as fedshare:client:3, and nothing else"
REQUESTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "must be a certificate request in PEM"),
    "endless": (lambda: bytes(70_000), "has more than 65536 bytes"),
    "no name": (asks, ONE),
    "two clients": (lambda: asks("fedshare:client:7", "fedshare:client:8"), ONE),
    "a host too": (lambda: asks("fedshare:client:7", "server.example.org"), ONE),
    "another's URI": (lambda: asks("https://example.org/7"), ONE),
    "a number beyond": (lambda: asks("fedshare:client:10000"), "asks to be client 10000, not client 7"),
    "another than expected": (lambda: asks("fedshare:client:8"), "asks to be client 8, not client 7"),
    "changed": (forged, "its signature is not by its key"),
    "RSA": (
        lambda: asks("fedshare:client:7", key=rsa.generate_private_key(65537, 2048)),
        "must have a key on the curve P-256 or P-384",
    ),
    "Ed25519": (
        lambda: asks("fedshare:client:7", key=ed25519.Ed25519PrivateKey.generate()),
        "must have a key on the curve P-256 or P-384",
    ),
    "another curve": (
        lambda: asks("fedshare:client:7", key=ec.generate_private_key(ec.SECP521R1())),
        "must have a key on the curve P-256 or P-384",
    ),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_that_is_not_one_is_not_signed(pki: Path, tmp_path: Path, fedshare: Say, kind: str) -> None:
    make, sentence = REQUESTS[kind]
    (tmp_path / "sent.csr").write_bytes(make())
    status, line = fedshare("keys", "sign", pki, tmp_path / "sent.csr", "--client", 7)
    assert status == 2
    assert sentence in line
    assert line.count("\n") == 1
    assert not (pki / "client-7").exists()


def test_an_authority_takes_of_a_request_its_key_and_its_number_alone(pki: Path, tmp_path: Path) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificates.common_name("server"))
    builder = builder.add_extension(x509.SubjectAlternativeName([certificates.client_name(7)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    (tmp_path / "sent.csr").write_bytes(certificates.pem_of(made))
    enrolment.sign(pki, tmp_path / "sent.csr", 365, None)
    signed = certificates.load(pki / "client-7" / "client.crt")
    assert signed.subject.rfc4514_string() == "CN=client-7"
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_number_beyond_all_is_not_signed_or_requested(pki: Path, tmp_path: Path, fedshare: Say) -> None:
    (tmp_path / "sent.csr").write_bytes(asks("fedshare:client:10000"))
    for command in (("sign", pki, tmp_path / "sent.csr"), ("request", tmp_path / "host", "--client", 10000)):
        status, line = fedshare("keys", *command)
        assert status == 2
        assert "client 10000: must be from 0 to 9999" in line
    assert not (tmp_path / "host").exists()


def test_who_is_revoked_is_not_certified_again(pki: Path, tmp_path: Path, fedshare: Say) -> None:
    host = tmp_path / "host"
    enrol(pki, host, 7)
    request = host / "client-7" / "client-7.csr"
    for who, whose in ((request, "this key was"), (7, "client 7 is")):
        fedshare("keys", "revoke", pki, who)
        status, line = fedshare("keys", "sign", pki, request)
        assert status == 2
        assert f"{request}: {whose} revoked, by {pki}/server/denied: `fedshare keys revoke" in line
        fedshare("keys", "revoke", pki, who, "--undo")
        assert fedshare("keys", "sign", pki, request)[0] == 0


def test_what_comes_back_must_be_for_the_key_that_is_there(pki: Path, tmp_path: Path, fedshare: Say) -> None:
    host, sent = tmp_path / "host", tmp_path / "sent.pem"
    enrol(pki, host, 7)
    good = (pki / "client-7" / "client-7.pem").read_bytes()
    enrol(pki, tmp_path / "other", 8)
    keys.make(tmp_path / "rogue", ["localhost"], clients=1, days=365)
    enrolment.sign(tmp_path / "rogue", host / "client-7" / "client-7.csr", 365, None)
    rogue = (tmp_path / "rogue" / "client-7" / "client-7.pem").read_bytes()
    own, ca = good.split(b"-----BEGIN")[1:]
    mixed = b"-----BEGIN" + own + b"-----BEGIN" + rogue.split(b"-----BEGIN")[2]
    before = {path.name: path.read_bytes() for path in (host / "client-7").iterdir()}
    for data, sentence in (
        (b"", "must be what `fedshare keys sign` has made"),
        (b"-----BEGIN" + own, "must be what `fedshare keys sign` has made"),
        (b"-----BEGIN" + ca + b"-----BEGIN" + own, "must be what `fedshare keys sign` has made"),
        (mixed, "its first certificate was not signed by its second"),
        (rogue, "comes from the authority"),
        ((pki / "client-8" / "client-8.pem").read_bytes(), "client-8/client.key is not there; `fedshare keys request"),
    ):
        sent.write_bytes(data)
        status, line = fedshare("keys", "accept", host, sent)
        assert status == 2
        assert sentence in line
        assert line.count("\n") == 1
        assert {path.name: path.read_bytes() for path in (host / "client-7").iterdir()} == before
    shutil.rmtree(tmp_path / "other" / "client-8")
    enrolment.request(tmp_path / "other", 8)
    status, line = fedshare("keys", "accept", tmp_path / "other", pki / "client-8" / "client-8.pem")
    assert status == 2
    assert "client-8.pem: is for another key than " in line


# The authority's passphrase


def test_an_authority_may_have_a_passphrase(tmp_path: Path, fedshare: Say) -> None:
    folder, secret, wrong = tmp_path / "keys", tmp_path / "secret", tmp_path / "wrong"
    secret.write_text("correct horse\n")
    wrong.write_text("battery\n")
    make = ("keys", folder, "--server", "localhost", "--clients", 1)
    assert fedshare(*make, "--passphrase", secret)[0] == 0
    key = folder / "ca" / "ca.key"
    assert b"ENCRYPTED" in key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    enrolment.request(tmp_path / "host", 3)
    sign = ("keys", "sign", folder, tmp_path / "host" / "client-3" / "client-3.csr")
    for command in ((*make[:-1], 2), sign):
        assert fedshare(*command) == (2, f"fedshare: {key}: is encrypted: give --passphrase\n")
        status, line = fedshare(*command, "--passphrase", wrong)
        assert status == 2
        assert "ca.key: the passphrase is another, or it is damaged" in line
        assert fedshare(*command, "--passphrase", secret)[0] == 0
    with door(folder) as server:
        guest(server, folder, 1)
        until_present(server, 1)


def test_a_new_passphrase_is_asked_for_twice(tmp_path: Path, fedshare: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    make = ("keys", tmp_path / "keys", "--server", "localhost", "--clients", 1, "--passphrase")
    answers = iter(["horse", "hoarse", "horse", "horse", "horse"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    assert fedshare(*make) == (2, "fedshare: --passphrase: the two differ\n")
    assert not (tmp_path / "keys").exists()
    assert fedshare(*make)[0] == 0
    assert "nothing to make" in fedshare(*make)[1]  # asked once


# Renewal


def renew(pki: Path, name: str, seconds: float) -> int:
    """A certificate for the same key, valid for so long; its serial number."""
    role, ca = name.partition("-")[0], Authority.load(pki / "ca", None)
    path = pki / name / f"{role}.crt"
    old = certificates.load(path)
    names = [*old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
    assert ca is not None
    made = ca.certify(name, certificates.public_key(old, path), names, timedelta(seconds=seconds))
    files.write_atomically(path, certificates.pem_of(made))
    return made.serial_number


def until_ended(path: Path) -> None:
    end = certificates.load(path).not_valid_after_utc
    wait_until(lambda: certificates.now() > end, f"{path} has ended")


def serial_at(address: str, pki: Path) -> int:
    """Of the certificate that a new connection is shown."""
    place, (host, _, port) = pki / "client-2", address.rpartition(":")
    context = ssl.create_default_context(cafile=str(place / "ca.crt"))
    context.load_cert_chain(place / "client.crt", place / "client.key")
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection((host, int(port)), PATIENCE)
    with context.wrap_socket(plain, server_hostname=host) as secure:
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"").serial_number


@pytest.mark.long
def test_a_servers_certificate_is_renewed_while_it_runs(pki: Path) -> None:
    first = renew(pki, "server", 8)
    said: list[str] = []
    with door(pki, said) as server:
        assert serial_at(server.address, pki) == first
        lasting = guest(server, pki, 0)
        until_present(server, 0)
        until_ended(pki / "server" / "server.crt")
        assert "certificate has expired" in refusal(guest(server, pki, 1))
        second = renew(pki, "server", 3600)
        assert serial_at(server.address, pki) == second
        guest(server, pki, 1)
        until_present(server, 0, 1)
        assert ask(server, 0, b"x") == b"re x"
        assert lasting.error is None
        assert said.count(f"{pki}/server: the certificate of the server was renewed") == 1


@pytest.mark.long
def test_a_clients_certificate_is_read_again_when_it_comes_back(pki: Path) -> None:
    renew(pki, "client-0", 8)
    with door(pki) as server:
        lasting = guest(server, pki, 0)
        until_present(server, 0)
        address = server.address
        server.close()
    until_ended(pki / "client-0" / "client.crt")
    second = renew(pki, "client-0", 3600)
    with door(pki, address=address) as server:
        until_present(server, 0)
        seen = server.members.by_id[0].connection
        assert seen is not None
        assert seen.certificate is not None
        assert x509.load_pem_x509_certificate(seen.certificate).serial_number == second
        assert lasting.error is None
        assert f"{pki}/client-0: the certificate of client 0 was renewed" in lasting.said


def test_a_certificate_that_is_half_renewed_is_not_used(pki: Path) -> None:
    whole, path = (pki / "server" / "server.crt").read_bytes(), pki / "server" / "server.crt"
    said: list[str] = []
    with door(pki, said) as server:
        first = serial_at(server.address, pki)
        for data in (whole[:200], b"", (pki / "client-0" / "client.crt").read_bytes()):
            path.write_bytes(data)
            assert [serial_at(server.address, pki) for _ in range(3)] == [first] * 3
        path.unlink()
        assert serial_at(server.address, pki) == first
        complaints = [line for line in said if line.endswith("; the certificate that was there before stays in use")]
        assert len(complaints) == 3  # what is empty and what is cut have the same flaw
        assert f"{path}: must be a certificate in PEM" in complaints[0]
        assert "server.key: is not the key of server.crt" in complaints[1]
        path.write_bytes(whole)
        second = renew(pki, "server", 3600)
        assert serial_at(server.address, pki) == second


# Warnings


def test_certificates_that_end_soon_are_named_at_the_start_each_day_and_when_a_client_joins(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew(pki, "client-1", 3 * 365 * 86400)
    later = certificates.now() + timedelta(days=365 - 12, hours=-1)
    monkeypatch.setattr(certificates, "now", lambda: later)
    said: list[str] = []
    with door(pki, said, reminder=0.2, quiet=0.1) as server:
        assert said == ["the server's certificate ends in 12 days: renew it with `fedshare keys`"]
        guest(server, pki, 0)
        guest(server, pki, 1)
        until_present(server, 0, 1)
        line = "client 0's certificate ends in 12 days: renew it with `fedshare keys`"
        wait_until(lambda: said.count(said[0]) > 2 and said.count(line) > 2, "it is said again")
        assert not any("client 1" in line for line in said)


def test_a_client_is_told_of_its_own_and_of_the_authoritys_end(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renew(pki, "client-0", 40 * 365 * 86400)
    identity = Identity.load(pki / "client-0")
    assert identity.endings() == []
    later = certificates.now() + AUTHORITY_LIFE - timedelta(days=2)
    monkeypatch.setattr(certificates, "now", lambda: later)
    own, authority = identity.endings()
    assert own.startswith("client 0's certificate ends in ")
    assert authority.startswith("the authority's certificate ends in ")


def test_a_short_certificate_is_warned_of_when_it_can_be_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.make(tmp_path, [], clients=1, days=9)
    assert endings(tmp_path) == []
    later = certificates.now() + timedelta(days=7, hours=-1)
    monkeypatch.setattr(certificates, "now", lambda: later)
    assert endings(tmp_path) == [("server", "ends in 2 days"), ("client-0", "ends in 2 days")]
    assert len(keys.make(tmp_path, [], clients=1, days=9)) == 2
    assert endings(tmp_path) == []


# The commands


@pytest.mark.process
def test_a_running_deployment_loses_who_is_revoked_and_goes_on(pki: Path, tmp_path: Path, fedshare: Say) -> None:
    small = ("data=digits", "partition.clients=3", "model=logistic", "rounds=100000")
    before = certificates.now() - timedelta(days=350, hours=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "now", lambda: before)
        patch.setattr(certificates, "require_current", lambda *_: None)
        renew(pki, "client-0", 365 * 86400)
    with Deployment(tmp_path, pki, *small) as deployment:
        server = deployment.server()
        clients = [deployment.client(id, "--patience", str(PATIENCE)) for id in range(3)]
        deployment.reach(1, server)
        clients[0].until("client 0's certificate ends in 14 days")
        server.until("client 0's certificate ends in 14 days")
        assert fedshare("keys", "revoke", pki, 2, "--why", "left\nthe study")[0] == 0
        assert "left\\nthe study" in (pki / "server" / DENIED).read_text()
        assert clients[2].wait() == 2
        clients[2].until(f"fedshare: {deployment.address}: client 2 was refused: {BARRED}")
        server.until(f"client 2 is gone: {BARRED}")
        deployment.reach(deployment.rounds() + 3, server)
        again = deployment.client(2)
        assert again.wait() == 2
        assert again.said.count("\n") == 1
        server.until(f"client 2 was refused: {BARRED}")
        fedshare("keys", "revoke", pki, 2, "--undo")
        deployment.client(2)
        server.until("client 2 is back")


def test_help_names_the_ways_and_an_old_command_still_makes_keys(tmp_path: Path, fedshare: Say) -> None:
    status, line = fedshare("keys", tmp_path / "keys", "--server", "localhost", "--clients", 1)
    assert status == 0
    assert f"{tmp_path}/keys/ca: made ca.key" in line
    for name in ("request", "sign", "accept", "revoke"):
        assert f"fedshare keys {name}" in fedshare("keys", "--help")[1]
        assert f"usage: fedshare keys {name}" in fedshare("keys", name, "--help")[1]
