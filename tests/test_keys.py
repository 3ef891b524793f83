"""Keys and certificates: what TLS makes of them, what a second run adds, and what is said where one is damaged."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedshare.errors import UserError
from fedshare.identity import authority, certificates, keys, pem
from fedshare.identity.identity import Identity, client_id_of, describe
from fedshare.identity.keys import make
from fedshare.machine import files
from world import PATIENCE

HOSTS = ["FL.example.org", "10.1.2.3", "fd00::7"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "original"
    make(folder, HOSTS, clients=2, days=365)
    return folder


@pytest.fixture(scope="module")
def rogue(tmp_path_factory: pytest.TempPathFactory, original: Path) -> Path:
    """The same names under another authority; all trust the true one."""
    folder = tmp_path_factory.mktemp("keys") / "rogue"
    make(folder, HOSTS, clients=2, days=365)
    for place in ("server", "client-0", "client-1"):
        shutil.copy(original / "ca" / "ca.crt", folder / place / "ca.crt")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "keys")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shift_clock(patch: pytest.MonkeyPatch, **by: float) -> None:
    now = certificates.now()
    patch.setattr(certificates, "now", lambda: now + timedelta(**by))


def context(place: Path, side: int, role: str) -> ssl.SSLContext:
    result = ssl.SSLContext(side)
    result.minimum_version = ssl.TLSVersion.TLSv1_3
    result.verify_mode = ssl.CERT_REQUIRED
    result.verify_flags |= ssl.VERIFY_X509_STRICT
    result.load_verify_locations(place / "ca.crt")
    result.load_cert_chain(place / f"{role}.crt", place / f"{role}.key")
    return result


def handshake(
    server: Path, client: Path, host: str = "localhost", roles: tuple[str, str] = ("server", "client")
) -> bytes:
    """The certificate that the server was shown, after both sides have accepted each other."""
    sockets = socket.socketpair()
    for end in sockets:
        end.settimeout(PATIENCE)
    inner = context(server, ssl.PROTOCOL_TLS_SERVER, roles[0])
    outer = context(client, ssl.PROTOCOL_TLS_CLIENT, roles[1])

    def accept() -> bytes:
        with inner.wrap_socket(sockets[0], server_side=True) as connection:
            connection.sendall(b"welcome")
            return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"").encode()

    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(accept)
        try:
            with outer.wrap_socket(sockets[1], server_hostname=host) as connection:
                assert connection.recv(7) == b"welcome"
        except ssl.SSLCertVerificationError:
            raise
        except OSError:
            accepted.result(timeout=PATIENCE)  # the server refused, and says why
            raise
        return accepted.result(timeout=PATIENCE)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "fl.example.org", "10.1.2.3", "fd00::7"])
def test_server_and_client_accept_each_other(original: Path, host: str) -> None:
    shown = handshake(original / "server", original / "client-1", host)
    assert client_id_of(shown) == 1


@pytest.mark.parametrize("host", ["other.example.org", "example.org", "10.1.2.4"])
def test_a_server_under_another_name_is_refused(original: Path, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(original / "server", original / "client-0", host)


def test_another_authority_is_refused_on_either_side(original: Path, rogue: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(original / "server", rogue / "client-0")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(rogue / "server", original / "client-0")


def test_a_client_cannot_play_the_server_nor_the_server_a_client(original: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(original / "client-1", original / "client-0", roles=("client", "client"))
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(original / "server", original / "server", roles=("server", "server"))


def test_only_the_authority_may_sign_and_no_authority_below_it(original: Path) -> None:
    for name, allowed in (("ca/ca.crt", (True, 0)), ("server/server.crt", (False, None))):
        extensions = x509.load_pem_x509_certificate((original / name).read_bytes()).extensions
        limits = extensions.get_extension_for_class(x509.BasicConstraints)
        assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, *allowed)
        assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign == allowed[0]


def test_an_expired_certificate_is_refused_and_renewed_for_the_same_key(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shift_clock(patch, days=-31)
        make(tmp_path, [], clients=1, days=30)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path / "server", tmp_path / "client-0")
    with pytest.raises(UserError, match=r"CN=client-0 is valid from .* UTC, and the clock says .*; renew it with"):
        Identity.load(tmp_path / "client-0")
    before = contents(tmp_path)
    assert [line.rpartition(" until ")[0] for line in make(tmp_path, [], clients=1, days=30)] == [
        f"{tmp_path}/server: made server.crt for localhost, 127.0.0.1",
        f"{tmp_path}/client-0: made client.crt",
    ]
    changed = {name for name, data in contents(tmp_path).items() if data != before[name]}
    assert changed == {"server/server.crt", "client-0/client.crt"}
    assert client_id_of(handshake(tmp_path / "server", tmp_path / "client-0")) == 0


def test_grpc_accepts_them_and_shows_who_the_client_is(original: Path) -> None:
    import grpc

    server, client = Identity.load(original / "server"), Identity.load(original / "client-1")
    assert (server.client_id, client.client_id) == (None, 1)

    def who(request: bytes, call: object) -> bytes:
        return b"%d" % client_id_of(call.auth_context()["x509_pem_cert"][0])  # type: ignore[attr-defined]

    with ThreadPoolExecutor(1) as pool:
        service = grpc.server(pool)
        handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
        service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
        pair = [(server.key, server.certificate)]
        credentials = grpc.ssl_server_credentials(pair, server.ca, require_client_auth=True)
        port = service.add_secure_port("127.0.0.1:0", credentials)
        service.start()
        try:
            credentials = grpc.ssl_channel_credentials(client.ca, client.key, client.certificate)
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
                assert channel.unary_unary("/test/Who")(b"", timeout=PATIENCE) == b"1"
        finally:
            service.stop(None).wait()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")
@pytest.mark.parametrize(("place", "role"), [("server", "server"), ("client-1", "client")])
def test_openssl_verifies_them_strictly(original: Path, place: str, role: str) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", f"ssl{role}", "-CAfile", original / "ca" / "ca.crt"]
    result = subprocess.run(
        [*command, original / place / f"{role}.crt"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(": OK\n")


def test_the_key_of_a_supernode_is_what_flower_reads(original: Path) -> None:
    key = serialization.load_ssh_private_key((original / "client-1" / "supernode").read_bytes(), None)
    public = serialization.load_ssh_public_key((original / "client-1" / "supernode.pub").read_bytes())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert key.public_key() == public
    assert contents(original / "client-0")["supernode"] != contents(original / "client-1")["supernode"]


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_only_the_owner_may_read_keys_and_open_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = []
    sync = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda file: (unfinished.append(os.fstat(file).st_mode & 0o777), sync(file)))
    make(tmp_path / "keys", [], clients=1, days=1)
    modes = {path: path.stat().st_mode & 0o777 for path in [tmp_path / "keys", *(tmp_path / "keys").rglob("*")]}
    private = {path.name for path, mode in modes.items() if mode == 0o600}
    assert private == {"ca.key", "server.key", "client.key", "supernode"}
    assert unfinished.count(0o600) == 4
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}


@pytest.mark.usefixtures("no_umask")
def test_what_a_crash_left_does_not_open_a_key(tmp_path: Path) -> None:
    left = tmp_path / f".server.key.{os.getpid()}.tmp"
    left.touch(0o666)
    files.write_atomically(tmp_path / "server.key", "secret", mode=0o600)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"server.key": 0o600}


# What a second run adds


def test_a_second_run_adds_clients_and_leaves_what_is_there(folder: Path) -> None:
    before = contents(folder)
    assert make(folder, HOSTS, 2, 365) == [f"{folder}: nothing to make; the server and 2 clients have all they need"]
    (line,) = make(folder, ["fl.example.org"], clients=3, days=365)
    assert line.startswith(f"{folder}/client-2: made client.key, ca.crt, client.crt until 2")
    assert line.endswith(", supernode, supernode.pub")
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert client_id_of(handshake(folder / "server", folder / "client-2")) == 2


def test_a_new_host_gives_the_same_key_a_certificate_for_the_old_ones_too(folder: Path) -> None:
    before = contents(folder)
    (line,) = make(folder, ["new.example.org"], clients=2, days=365)
    assert line.startswith(f"{folder}/server: made server.crt for fl.example.org, 10.1.2.3, fd00::7, localhost, 127")
    assert {name for name, data in contents(folder).items() if data != before[name]} == {"server/server.crt"}
    for host in ("new.example.org", "fl.example.org"):
        handshake(folder / "server", folder / "client-0", host)


@pytest.mark.parametrize("lost", ["client.key", "client.crt", "ca.crt", "supernode", "supernode.pub"])
def test_what_was_lost_is_made_again_and_named(folder: Path, lost: str) -> None:
    before = contents(folder)
    (folder / "client-1" / lost).unlink()
    (line,) = make(folder, HOSTS, clients=2, days=365)
    assert line.startswith(f"{folder}/client-1: made {lost}")
    assert contents(folder).keys() == before.keys()
    assert Identity.load(folder / "client-1").client_id == 1
    test_the_key_of_a_supernode_is_what_flower_reads(folder)


@contextmanager
def killed_after(writes: int) -> Iterator[None]:
    left = iter(range(writes))

    def write(path: Path, data: bytes | str, **options: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        files.write_atomically(path, data, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (authority, keys, pem):
            patch.setattr(module, "write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("writes", range(2 + 3 + 5))
def test_a_run_that_was_killed_is_finished_by_the_next(tmp_path: Path, writes: int) -> None:
    with killed_after(writes):
        make(tmp_path, [], clients=1, days=1)
    before = contents(tmp_path)
    assert len(before) == writes
    make(tmp_path, [], clients=1, days=1)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert client_id_of(handshake(tmp_path / "server", tmp_path / "client-0")) == 0


@pytest.mark.parametrize("lost", ["client.key", "supernode"])
def test_a_run_that_was_killed_while_it_replaced_a_lost_key_is_finished_too(folder: Path, lost: str) -> None:
    (folder / "client-1" / lost).unlink()
    with killed_after(writes=1):
        make(folder, HOSTS, clients=2, days=365)
    make(folder, HOSTS, clients=2, days=365)
    assert client_id_of(handshake(folder / "server", folder / "client-1")) == 1
    test_the_key_of_a_supernode_is_what_flower_reads(folder)


def test_it_is_said_when_each_certificate_ends(original: Path) -> None:
    assert [name for name, _ in describe(original)] == ["ca", "server", "client-0", "client-1"]
    ends = dict(describe(original))
    left = ends["client-1"] - certificates.now()
    assert timedelta(days=364) < left <= timedelta(days=365)
    assert ends["ca"] > ends["server"] + timedelta(days=authority.MAX_DAYS - 365)
    assert describe(original / "client-1") == [("ca", ends["ca"]), ("client", ends["client-1"])]


def test_clients_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    make(tmp_path, [], clients=11, days=1)
    assert [name for name, _ in describe(tmp_path)][2:] == [f"client-{client}" for client in range(11)]


# What is said where something is wrong


Change = Callable[[Path, Path], object]


def replace(path: Path, by: Path) -> None:
    shutil.copytree(by, path, dirs_exist_ok=True) if by.is_dir() else shutil.copy(by, path)


def swap(*pairs: tuple[str, str]) -> Change:
    return lambda folder, rogue: [replace(folder / name, folder / other) for name, other in pairs]


def foreign(name: str) -> Change:
    return lambda folder, rogue: replace(folder / name, rogue / name)


def damage(name: str, data: bytes = b"-----BEGIN CERTIFICATE-----\nnonsense") -> Change:
    return lambda folder, rogue: (folder / name).write_bytes(data)


def remove(*names: str) -> Change:
    return lambda folder, rogue: [(folder / name).unlink() for name in names]


def lock(name: str) -> Change:
    def change(folder: Path, rogue: Path) -> None:
        key = serialization.load_pem_private_key((folder / name).read_bytes(), None)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (folder / name).write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))

    return change


DAMAGED = {
    "CA certificate": (damage("ca/ca.crt"), "ca/ca.crt: must be a certificate in PEM"),
    "CA key": (damage("ca/ca.key"), "ca/ca.key: must be a private key in PEM"),
    "CA empty": (damage("ca/ca.crt", b" "), "ca/ca.crt: must be a certificate in PEM"),
    "CA of another": (foreign("ca/ca.crt"), "ca/ca.key: is not the key of ca.crt"),
    "CA key locked": (lock("ca/ca.key"), "ca/ca.key: is encrypted: give --passphrase"),
    "CA key lost": (remove("ca/ca.key"), "ca/ca.key: missing, though .*/ca/ca.crt is there; bring it back"),
    "CA lost": (remove("ca/ca.key", "ca/ca.crt"), "ca/ca.key: missing, though .*/server/.*crt is there; bring it back"),
    "CA certificate lost": (remove("ca/ca.crt"), "ca/ca.crt: missing, though .*/server/.*crt is there"),
    "server's CA": (swap(("server/ca.crt", "server/server.crt")), "server/ca.crt: must be the same as .*ca/ca.crt"),
    "server's key": (damage("server/server.key"), "server/server.key: must be a private key in PEM"),
    "key of another": (swap(("client-1/client.key", "client-0/client.key")), "client.key: is not the key of"),
    "SuperNode's key": (damage("client-1/supernode"), "client-1/supernode: must be a private key in PEM"),
    "wrong folder": (swap(("client-1", "client-0")), "client-1/client.crt: belongs to client 0"),
    "another's CA": (foreign("ca"), "server/ca.crt: must be the same as .*ca/ca.crt"),
    "another's client": (foreign("client-1"), "client-1/client.crt: was not signed by .*ca/ca.crt"),
}


@pytest.mark.parametrize(("change", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_nothing_is_made_beside_what_is_damaged(folder: Path, rogue: Path, change: Change, sentence: str) -> None:
    change(folder, rogue)
    before = contents(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        make(folder, [*HOSTS, "new.example.org"], clients=3, days=365)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


UNFIT = {
    "nothing": (lambda folder, rogue: shutil.rmtree(folder / "client-1"), "client-1: must hold either server.crt or"),
    "two roles": (swap(("client-1/server.crt", "server/server.crt")), "client-1: must hold either server.crt or"),
    "no key": (remove("client-1/client.key"), "client-1/client.key: No such file"),
    "no CA": (remove("client-1/ca.crt"), "client-1/ca.crt: No such file"),
    "CA": (damage("client-1/ca.crt"), "client-1/ca.crt: must be a certificate in PEM"),
    "certificate": (damage("client-1/client.crt"), "client-1/client.crt: must be a certificate in PEM"),
    "key": (damage("client-1/client.key", b"\0"), "client-1/client.key: must be a private key in PEM"),
    "locked key": (lock("client-1/client.key"), "client-1/client.key: must be a private key in PEM, .* without a pass"),
    "CA of another": (swap(("client-1/ca.crt", "client-0/client.crt")), "client.crt: was not signed by .*-1/ca.crt"),
    "another's": (foreign("client-1"), "client-1/client.crt: was not signed by .*client-1/ca.crt"),
    "key of another": (swap(("client-1/client.key", "client-0/client.key")), "client.key: is not the key of"),
    "the server's": (
        swap(("client-1/client.crt", "server/server.crt"), ("client-1/client.key", "server/server.key")),
        "client-1/client.crt: must name one client, as fedshare:client:3",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), UNFIT.values(), ids=UNFIT)
def test_an_identity_that_no_peer_would_accept_is_not_loaded(
    folder: Path, rogue: Path, change: Change, sentence: str
) -> None:
    assert Identity.load(folder / "client-1").client_id == 1
    change(folder, rogue)
    with pytest.raises(UserError, match=sentence) as caught:
        Identity.load(folder / "client-1")
    assert "\n" not in str(caught.value)


def test_a_clock_that_is_wrong_is_named(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_clock(monkeypatch, minutes=-4)
    Identity.load(original / "client-0")
    shift_clock(monkeypatch, days=-1)
    with pytest.raises(
        UserError, match=r"CN=client-0 is valid from [-0-9]+ [:0-9]+ to .*says [-0-9]+ .*; set the clock$"
    ):
        Identity.load(original / "client-0")


def test_an_authority_that_has_ended_makes_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_clock(monkeypatch, days=authority.AUTHORITY_LIFE.days - 10)
    (line,) = make(folder, HOSTS, clients=2, days=365)[-1:]
    assert dict(describe(folder))["client-1"] == dict(describe(folder))["ca"], line
    shift_clock(monkeypatch, days=11)
    with pytest.raises(UserError, match=r"ca: the certificate of CN=fedshare authority .* is valid from"):
        make(folder, HOSTS, clients=2, days=365)


NO_HOSTS = ["", "a b", "a\n", "host:50051", "https://host", "[::1]", "*.example.org", "a..b", "-a", "a-", "a" * 64]
NO_HOSTS += ["300.1.1.1", "0.0.0.0", "::", "fe80::1%eth0", "ünï.example.org", ".".join(["a" * 60] * 5)]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_host_must_be_a_name_or_an_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"--server .*: must be a") as caught:
        make(tmp_path / "keys", ["good.example.org", host], clients=1, days=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(("clients", "days", "option"), [(0, 1, "clients"), (10**9, 1, "clients"), (1, 0, "days")])
def test_numbers_out_of_range(tmp_path: Path, clients: int, days: int, option: str) -> None:
    with pytest.raises(UserError, match=f"--{option} .*: must be from 1 to"):
        make(tmp_path / "keys", [], clients, days)
    assert not (tmp_path / "keys").exists()


def certificate(*names: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = certificates.common_name("someone")
    alternatives = [x509.UniformResourceIdentifier(name) for name in names] or [x509.DNSName("fedshare:client:3")]
    names = x509.SubjectAlternativeName(alternatives)
    subject = name, key.public_key()
    return certificates.pem_of(certificates.signed((name, key), subject, certificates.now(), names))


NAMELESS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "not PEM": lambda: b"client-3",
    "a DNS name": certificate,
    "two": lambda: certificate("fedshare:client:3", "fedshare:client:4"),
    "another scheme": lambda: certificate("spiffe://example.org/client/3"),
}
for number in ("", "-1", "03", "3 ", "1e3", "9" * 5000):
    NAMELESS[f"client {number[:5]}"] = partial(certificate, f"fedshare:client:{number}")


@pytest.mark.parametrize("pem", NAMELESS.values(), ids=NAMELESS)
def test_a_certificate_must_name_one_client(pem: Callable[[], bytes]) -> None:
    with pytest.raises(UserError, match=r"^the peer's certificate must name one client, as fedshare:client:3$"):
        client_id_of(pem())


def test_other_names_beside_the_client_do_not_matter() -> None:
    assert client_id_of(certificate("spiffe://example.org/a", "fedshare:client:30")) == 30


def test_an_identity_does_not_print_its_key(original: Path) -> None:
    identity = Identity.load(original / "client-0")
    assert b"PRIVATE KEY" in identity.key
    assert "PRIVATE" not in repr(identity)


@pytest.mark.process
def test_keys_load_neither_torch_nor_grpc() -> None:
    program = "import sys, fedshare.identity.keys; print({'torch', 'grpc', 'flwr', 'numpy'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert result.stdout == "set()\n"
