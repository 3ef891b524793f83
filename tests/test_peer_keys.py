"""Keys of peers: certificates that serve both ends of a connection, and name the key that signs what a peer says."""

import asyncio
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedshare.errors import UserError
from fedshare.experiments.commands.keys import keys as command
from fedshare.identity import certificates, enrolment, keys
from fedshare.identity.identity import Identity, client_id_of
from fedshare.identity.signing import FILE, Signer, Verifier
from world import PATIENCE


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "original"
    command([str(folder), "--peers", "5", "--server", "relay.example.org"])
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "keys")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(path: Path) -> list[str]:
    held = certificates.load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in held]


async def who(server: Identity, client: Identity | None, name: str) -> tuple[bytes, bytes]:
    """Dial `server` under `name`: who it sees calling, and whom the caller sees."""

    async def answer(request: bytes, call: grpc.aio.ServicerContext) -> bytes:
        return b"%d" % client_id_of(call.auth_context()["x509_pem_cert"][0])

    service = grpc.aio.server()
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(answer)}
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    pair = [(server.key, server.certificate)]
    port = service.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, server.ca, True))
    await service.start()
    shown = (client.ca, client.key, client.certificate) if client else (server.ca,)
    override = [("grpc.ssl_target_name_override", name)]
    try:
        credentials = grpc.ssl_channel_credentials(*shown)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, override) as channel:
            return await channel.unary_unary("/test/Who")(b"", timeout=PATIENCE), server.certificate
    finally:
        await service.stop(None)


def test_tls_shows_both_ends_which_peer_the_other_is(original: Path) -> None:
    three, one = Identity.load(original / "client-3"), Identity.load(original / "client-1")
    assert asyncio.run(who(three, one, "peer-3.fedshare"))[0] == b"1"
    assert asyncio.run(who(one, three, "peer-1.fedshare"))[0] == b"3"


@pytest.mark.parametrize("name", ["peer-4.fedshare", "peer-33.fedshare", "relay.example.org", "localhost"])
def test_a_peer_under_another_name_is_refused(original: Path, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        asyncio.run(who(Identity.load(original / "client-3"), Identity.load(original / "client-1"), name))


def test_a_peer_lets_nobody_in_without_a_certificate_of_its_authority(original: Path, tmp_path: Path) -> None:
    keys.make(tmp_path, None, 2, 365, peers=True)
    three = Identity.load(original / "client-3")
    stranger = Identity.load(tmp_path / "client-1")
    stranger = Identity(three.ca, stranger.certificate, stranger.key)
    for caller in (None, stranger):
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            asyncio.run(who(three, caller, "peer-3.fedshare"))


def test_a_client_cannot_play_a_peer(folder: Path) -> None:
    keys.make(folder, None, 6, 365)
    plain = Identity.load(folder / "client-5")
    assert plain.signing_key is None
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        asyncio.run(who(plain, Identity.load(folder / "client-1"), "peer-5.fedshare"))
    with pytest.raises(UserError, match=r"client-5: its certificate names no signing key; `fedshare keys DIR --peers"):
        plain.signer()


def test_a_certificate_names_the_key_that_signs(original: Path) -> None:
    public = set()
    for place in ("server", *(f"client-{peer}" for peer in range(5))):
        identity = Identity.load(original / place)
        signer = identity.signer()
        assert identity.signing_key == signer.public == certificates.signing_key_of(identity.certificate)
        assert Verifier(signer.public).accepts(b"said", signer.sign(b"said"))
        assert (original / place / FILE).stat().st_mode & 0o777 == 0o600
        public.add(signer.public)
    assert len(public) == 6
    expected = [
        "fedshare:client:3",
        "peer-3.fedshare",
        f"fedshare:ed25519:{Signer.load(original / 'client-3').public.hex()}",
    ]
    assert names(original / "client-3" / "client.crt") == expected


@pytest.mark.parametrize("pem", [b"", b"nonsense"])
def test_what_is_no_certificate_names_no_key(pem: bytes) -> None:
    assert certificates.signing_key_of(pem) is None


def test_peers_need_no_server(tmp_path: Path) -> None:
    lines = command([str(tmp_path), "--peers", "2"])
    assert [line.partition(" until ")[0] for line in lines[1:]] == [
        f"{tmp_path}/client-{peer}: made client.key, signing.key, ca.crt, client.crt" for peer in range(2)
    ]
    assert not (tmp_path / "server").exists()
    assert command([str(tmp_path), "--peers", "2"]) == [f"{tmp_path}: nothing to make; 2 peers have all they need"]


def test_a_folder_of_clients_is_completed_for_the_same_keys(tmp_path: Path) -> None:
    command([str(tmp_path), "--clients", "2", "--server", "localhost"])
    before = contents(tmp_path)
    lines = command([str(tmp_path), "--peers", "2", "--server", "localhost"])
    assert [line.partition(" until ")[0] for line in lines] == [
        f"{tmp_path}/server: made signing.key, server.crt for localhost, 127.0.0.1",
        f"{tmp_path}/client-0: made signing.key, client.crt",
        f"{tmp_path}/client-1: made signing.key, client.crt",
    ]
    changed = {name for name, data in contents(tmp_path).items() if before.get(name) != data}
    places = ("server/server", "client-0/client", "client-1/client")
    assert changed == {f"{name}.crt" for name in places} | {f"{name.split('/')[0]}/{FILE}" for name in places}
    assert asyncio.run(
        who(Identity.load(tmp_path / "client-0"), Identity.load(tmp_path / "client-1"), "peer-0.fedshare")
    )


@pytest.mark.parametrize("option", ["--clients", "--peers"])
def test_renewal_keeps_the_signing_key_and_the_names(
    folder: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    later = certificates.now() + timedelta(days=340)
    monkeypatch.setattr(certificates, "now", lambda: later)
    command([str(folder), option, "5", "--server", "relay.example.org"])
    changed = {name for name, data in contents(folder).items() if before.get(name) != data}
    assert changed == {"server/server.crt", *(f"client-{peer}/client.crt" for peer in range(5))}
    for place in ("server/server.crt", "client-3/client.crt"):
        (folder / "old.crt").write_bytes(before[place])
        assert names(folder / place) == names(folder / "old.crt")
        old, new = (
            certificates.load(path).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            for path in (folder / "old.crt", folder / place)
        )
        assert old == new


def test_a_lost_signing_key_is_made_again_and_named(folder: Path) -> None:
    before = Signer.load(folder / "client-3").public
    (folder / "client-3" / FILE).unlink()
    (line,) = keys.make(folder, None, 5, 365, peers=True)
    assert line.startswith(f"{folder}/client-3: made signing.key, client.crt until")
    assert Identity.load(folder / "client-3").signer().public != before
    assert names(folder / "client-3" / "client.crt")[:2] == ["fedshare:client:3", "peer-3.fedshare"]
    assert len(names(folder / "client-3" / "client.crt")) == 3


def test_a_signing_key_that_is_another_is_named(folder: Path) -> None:
    shutil.copy(folder / "client-2" / FILE, folder / "client-3" / FILE)
    before = contents(folder)
    with pytest.raises(UserError, match=r"client-3/signing.key: is not the key that client.crt names"):
        keys.make(folder, None, 6, 365, peers=True)
    assert contents(folder) == before
    with pytest.raises(UserError, match=r"client-3/signing.key: is not the key that the certificate beside it names"):
        Identity.load(folder / "client-3").signer()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--peers", "0"], "--peers 0: must be from 1 to 10000"),
        (
            ["--peers", "2", "--clients", "2"],
            "--peers: makes the folders of clients 0 to N-1, too: leave out --clients",
        ),
        (["--peers", "2", "--owner"], "--owner: makes no certificates"),
        (["--clients", "2"], "--server and --clients, or --peers: required"),
        (["--peers", "2", "--server", "Peer-1.fedshare"], "names of this form are in the certificates of peers"),
    ],
)
def test_options_that_make_no_sense_make_nothing(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        command([str(tmp_path / "keys"), *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "keys").exists()


# Peers whose keys are made on their own hosts


def enrol(pki: Path, host: Path, peer: int, **more: bool) -> None:
    enrolment.request(host, peer, peer=True)
    enrolment.sign(pki, host / f"client-{peer}" / f"client-{peer}.csr", 365, None, **more)
    enrolment.accept(host, pki / f"client-{peer}" / f"client-{peer}.pem")


def test_a_peers_keys_may_be_made_on_its_host(folder: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    enrol(folder, host, 7)
    assert not any(b"PRIVATE" in path.read_bytes() for path in (folder / "client-7").iterdir())
    seven = Identity.load(host / "client-7")
    assert seven.signer().public == seven.signing_key
    assert asyncio.run(who(seven, Identity.load(folder / "client-1"), "peer-7.fedshare"))
    key = (host / "client-7" / FILE).read_bytes()
    enrolment.request(host, 7)  # it is a peer: that needs no second word
    enrol(folder, host, 7)
    keys.make(folder, None, 8, 365, peers=True)
    enrolment.accept(host, folder / "client-7" / "client-7.pem")
    assert Identity.load(host / "client-7").signing_key == seven.signing_key
    assert (host / "client-7" / FILE).read_bytes() == key


def test_a_client_with_its_key_on_its_host_becomes_a_peer_there(folder: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    enrolment.request(host, 5)
    enrolment.sign(folder, host / "client-5" / "client-5.csr", 365, None)
    with pytest.raises(UserError, match=r"client-5/client.crt: names no signing key, .*request DIR --client 5 --peer"):
        keys.make(folder, None, 6, 365, peers=True)
    enrol(folder, host, 5)
    assert Identity.load(host / "client-5").signer()
    keys.make(folder, None, 6, 365, peers=True)


def test_another_signing_key_of_a_peer_takes_a_flag(folder: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    enrol(folder, host, 7)
    (host / "client-7" / FILE).unlink()
    with pytest.raises(UserError, match=r"client-7.csr: names another signing key than .*--replace"):
        enrol(folder, host, 7)
    enrol(folder, host, 7, replace=True)
    assert Identity.load(host / "client-7").signer()
    assert not (folder / "server" / "denied").exists()  # the key of its TLS is the same


def asks(*alternatives: x509.GeneralName) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificates.common_name("client-7"))
    builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return certificates.pem_of(builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()))


SEVEN, SIGNING = certificates.client_name(7), certificates.signing_name(bytes(32))
REQUESTS: dict[str, Callable[[], bytes]] = {
    "two signing keys": lambda: asks(SEVEN, SIGNING, certificates.signing_name(bytes([1] * 32))),
    "a host, too": lambda: asks(SEVEN, SIGNING, x509.DNSName("peer-3.fedshare")),
    "a host instead": lambda: asks(SEVEN, x509.DNSName("peer-3.fedshare")),
    "a short key": lambda: asks(SEVEN, x509.UniformResourceIdentifier("fedshare:ed25519:00")),
    "no client": lambda: asks(SIGNING),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_names_a_client_and_a_signing_key_and_no_more(folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "sent.csr").write_bytes(REQUESTS[kind]())
    with pytest.raises(UserError, match="must name one client, as fedshare:client:3, and nothing else") as caught:
        enrolment.sign(folder, tmp_path / "sent.csr", 365, None)
    assert "\n" not in str(caught.value)
    assert not (folder / "client-7").exists()


def test_what_comes_back_must_name_the_signing_key_that_is_there(folder: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    enrol(folder, host, 7)
    shutil.copy(folder / "client-1" / FILE, host / "client-7" / FILE)
    with pytest.raises(UserError, match=r"client-7.pem: names another signing key than .*/client-7/signing.key"):
        enrolment.accept(host, folder / "client-7" / "client-7.pem")


def test_without_a_server_the_denylist_is_the_authoritys_and_each_peers(tmp_path: Path) -> None:
    keys.make(tmp_path, None, 3, 365, peers=True)
    (line,) = enrolment.revoke(tmp_path, ["client-2"])
    assert line.startswith(f"{tmp_path}/denied: added key ")
    (line,) = enrolment.revoke(tmp_path / "client-0", ["2"])
    assert line == f"{tmp_path}/client-0/denied: added client 2"
    enrolment.request(tmp_path / "host", 2, peer=True)
    request = tmp_path / "host" / "client-2" / "client-2.csr"
    enrolment.sign(tmp_path, request, 365, None, replace=True)
    enrolment.revoke(tmp_path, ["2"])
    with pytest.raises(UserError, match=r"client 2 is revoked, by .*/denied"):
        enrolment.sign(tmp_path, request, 365, None)
