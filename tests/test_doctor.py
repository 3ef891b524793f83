"""`fedshare doctor` finds what is really in the way, in one line, and disturbs nobody."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

import fedshare
from fedshare.experiments.commands import doctor
from fedshare.experiments.config import compose
from fedshare.experiments.hosts import agreement, host_checks
from fedshare.experiments.hosts.deploy_options import parser
from fedshare.identity import certificates, keys
from fedshare.identity.identity import Identity
from fedshare.transport.stream import diagnose
from fedshare.transport.stream.client import StreamClient
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.service import SERVICE
from fedshare.transport.stream.settings import Settings
from world import PATIENCE

Doctor = Callable[..., tuple[int, list[str]]]
HOST = "127.0.0.1"


@pytest.fixture
def examine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*arguments: str) -> tuple[int, list[str]]:
        given = [*arguments] if "--state" in arguments else [*arguments, "--state", str(tmp_path / "state")]
        status = doctor.examine(parser("doctor").parse_intermixed_args(given))
        out, err = capsys.readouterr()
        assert not err
        return status, out.splitlines()

    return run


def found(level: str, sentence: str, result: tuple[int, list[str]]) -> None:
    """There is one line of that level that has the sentence; the others are well."""
    status, lines = result
    others = [line for line in lines if not (line.startswith(f"{level:<7}  ") and sentence in line)]
    assert len(others) == len(lines) - 1, f"{sentence!r} is not once in\n" + "\n".join(lines)
    assert all(line.startswith("ok ") for line in others), "\n".join(lines)
    assert status == (2 if level == "FAILED" else 0)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki") / "keys"
    keys.make(folder, ["localhost"], clients=2, days=365)
    return folder


@contextmanager
def served(folder: Path | None) -> Iterator[StreamServer]:
    identity = Identity.load(folder / "server") if folder else None
    settings = Settings(version=fedshare.__version__, clients=2)
    server = StreamServer(f"{HOST}:0", identity, settings, lambda line: None)  # else among the doctor's lines
    server.start()
    try:
        yield server
    finally:
        server.close("")


@contextmanager
def listener() -> Iterator[str]:
    """Somebody who takes connections and says nothing."""
    with socket.create_server((HOST, 0)) as taken:
        yield f"{HOST}:{taken.getsockname()[1]}"


@contextmanager
def other_grpc(*status: int) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    if status:
        servicer = grpc_health.HealthServicer()
        servicer.set(SERVICE, status[0])
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        yield f"{HOST}:{port}"
    finally:
        server.stop(None).wait(5)


# The way to the server


def test_a_peers_signing_key_must_be_there(examine: Doctor, tmp_path: Path) -> None:
    keys.make(tmp_path / "keys", None, 1, 365, peers=True)
    place = tmp_path / "keys" / "client-0"
    assert examine("--keys", str(place))[0] == 0
    (place / "signing.key").unlink()
    found("FAILED", f"{place}/signing.key: missing", examine("--keys", str(place)))


def test_nothing_is_in_the_way_and_a_client_at_work_does_not_notice(examine: Doctor, pki: Path) -> None:
    heard: list[str] = []
    with served(pki) as server:
        identity = Identity.load(pki / "client-0")
        client = StreamClient(server.address, 0, identity, fedshare.__version__, say=heard.append)
        thread = threading.Thread(target=client.run, args=(lambda _: lambda body: [bytes(body).upper()],))
        thread.start()
        while server.present() != [0]:
            server.wait_for_change(10)
        status, lines = examine(server.address, "--keys", str(pki), "--id", "0", "--listen", f"{HOST}:0")
        server.send(0, [b"still here"])
        assert [bytes(answer.body or b"") for answer in server.receive(10)] == [b"STILL HERE"]
        assert server.present() == [0]
        assert not server.journal.refused
    thread.join(10)
    assert not heard
    assert status == 0, lines
    assert all(line.startswith("ok ") for line in lines), lines
    assert f"ok       {server.address}: can be reached, mutual TLS as client 0" in lines
    assert f"ok       {server.address}: its health is SERVING" in lines
    assert f"ok       {HOST}:0: a server could listen there" in lines


def test_without_tls_on_this_machine(examine: Doctor) -> None:
    with served(None) as server:
        status, lines = examine(server.address)
    assert status == 0
    assert f"ok       {server.address}: can be reached, no TLS" in lines


def test_nobody_listens(examine: Doctor) -> None:
    with listener() as address:
        pass
    found("FAILED", f"{address}: nobody listens there", examine(address))


def test_a_name_that_is_not_known(examine: Doctor) -> None:
    found("FAILED", "the name nowhere.invalid is not known", examine("nowhere.invalid:9443", "--insecure"))


def test_an_address_that_is_none(examine: Doctor) -> None:
    found("FAILED", "an address is HOST:PORT", examine("localhost"))


def test_no_tls_off_this_machine(examine: Doctor) -> None:
    found("FAILED", "192.0.2.1:9443: off this machine it takes TLS", examine("192.0.2.1:9443"))


def test_a_server_of_another_authority(examine: Doctor, pki: Path, tmp_path: Path) -> None:
    keys.make(tmp_path / "rogue", [], clients=1, days=365)
    with served(pki) as server:
        result = examine(server.address, "--keys", str(tmp_path / "rogue"))
    found("FAILED", "the server's certificate is not accepted", result)


def test_a_server_by_a_name_that_is_not_in_its_certificate(examine: Doctor, pki: Path) -> None:
    with served(pki) as server:
        result = examine(f"127.0.0.2:{server.address.split(':')[1]}", "--keys", str(pki))
        assert result[0] == 2  # nobody listens at 127.0.0.2, where there is such an address
    with served(pki) as server, _forwarded("127.0.0.2", server.address) as address:
        result = examine(address, "--keys", str(pki))
    found("FAILED", "the server's certificate is not accepted: IP address mismatch", result)


@contextmanager
def _forwarded(host: str, to: str) -> Iterator[str]:
    """One connection to `host`, passed on."""
    with socket.create_server((host, 0)) as door:

        def forward() -> None:
            here, _ = door.accept()
            there = socket.create_connection((HOST, int(to.split(":")[1])))
            with here, there:
                pump = threading.Thread(target=_pump, args=(there, here), daemon=True)
                pump.start()
                _pump(here, there)
                pump.join(5)

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        yield f"{host}:{door.getsockname()[1]}"
        thread.join(5)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_a_server_without_tls_where_tls_is_wanted(examine: Doctor, pki: Path) -> None:
    with served(None) as server:
        found("FAILED", "what listens there speaks no TLS", examine(server.address, "--keys", str(pki)))


def test_somebody_who_is_silent(examine: Doctor, pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "DEADLINE", 0.3)
    with listener() as address:
        found("FAILED", f"{address}: no answer in 0.3 s", examine(address, "--keys", str(pki)))


def test_a_server_that_asks_for_certificates(examine: Doctor, pki: Path) -> None:
    with served(pki) as server:
        found("FAILED", f"{server.address}: the server asks for certificates: --keys DIR", examine(server.address))


def test_a_grpc_server_that_is_not_ours(examine: Doctor) -> None:
    for status in ((), (health_pb2.HealthCheckResponse.NOT_SERVING,)):
        sentence = "its health is NOT_SERVING" if status else "what listens there is no fedshare server"
        with other_grpc(*status) as address:
            found("FAILED", sentence, examine(address))


def test_a_proxy_between_grpc_and_the_server(examine: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HEALTH_SECONDS", 0.5)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with listener() as nobody:
        pass
    monkeypatch.setenv("http_proxy", f"http://{nobody}")
    with served(None) as server:
        result = examine(server.address)
    found("FAILED", "gRPC goes through $http_proxy unless $no_proxy names the host", result)


def test_a_check_that_hangs_is_given_up(examine: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._CHECKS, doctor._server, 0.2)
    with listener() as address:
        status, lines = examine(address)
    assert status == 2
    assert "FAILED   server: no result in 0.2 s" in lines


# Certificates


def test_a_certificate_that_has_ended_or_not_begun(
    examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = certificates.now
    for days, sentence in ((-400, "or set the clock if it is wrong"), (10, "; set the clock")):
        with monkeypatch.context() as patch:
            patch.setattr(certificates, "now", lambda days=days: now() + timedelta(days=days))
            keys.make(tmp_path / str(days), [], clients=1, days=365)
        found("FAILED", sentence, examine("--keys", str(tmp_path / str(days)), "--id", "0"))


def test_certificates_that_end_soon(examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.make(tmp_path / "keys", [], clients=1, days=10)
    later = certificates.now() + timedelta(days=7, hours=1)
    monkeypatch.setattr(certificates, "now", lambda: later)
    result = examine("--keys", str(tmp_path / "keys" / "client-0"))
    found("warning", "the certificate of client ends in 2 days; `fedshare keys` renews it", result)


def test_keys_that_others_may_read(examine: Doctor, tmp_path: Path) -> None:
    keys.make(tmp_path / "keys", [], clients=1, days=365)
    key, authority = tmp_path / "keys" / "client-0" / "client.key", tmp_path / "keys" / "ca" / "ca.key"
    authority.chmod(0o640)
    found("warning", "ca.key: others may read it (mode 0640)", examine("--keys", str(tmp_path / "keys")))
    authority.chmod(0o600)
    key.chmod(0o644)
    found(
        "FAILED", "client.key: others can use this private key (mode 0644)", examine("--keys", str(tmp_path / "keys"))
    )


def test_certificates_that_no_peer_would_accept(examine: Doctor, pki: Path, tmp_path: Path) -> None:
    found("FAILED", "holds no certificates", examine("--keys", str(tmp_path)))
    keys.make(tmp_path / "keys", [], clients=2, days=365)
    other = (pki / "client-1" / "client.key").read_bytes()
    (tmp_path / "keys" / "client-1" / "client.key").write_bytes(other)
    found("FAILED", "client.key: is not the key of client.crt", examine("--keys", str(tmp_path / "keys")))


def test_certificates_of_another_participant(examine: Doctor, pki: Path) -> None:
    address = f"{HOST}:1"
    found("FAILED", "client-7", examine("--keys", str(pki), "--id", "7"))
    part = str(pki / "client-1")
    found("FAILED", "its certificate is client 1's, not client 0's", examine(address, "--keys", part, "--id", "0"))
    found("FAILED", "holds no client's certificate", examine(address, "--keys", str(pki / "server")))
    found("FAILED", "holds no server's certificate", examine("--listen", f"{HOST}:0", "--keys", part))


# Where a server would listen


def test_a_port_that_is_taken(examine: Doctor) -> None:
    with listener() as address:
        found(
            "FAILED", f"{address}: a server cannot listen there: Address already in use", examine("--listen", address)
        )


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("192.0.2.1:0", "a server cannot listen there: Cannot assign requested address"),
        ("nowhere.invalid:0", "nowhere.invalid:0: a server cannot listen there: "),
        ("0.0.0.0", "an address is HOST:PORT"),
    ],
)
def test_an_address_at_which_no_server_can_listen(examine: Doctor, address: str, sentence: str) -> None:
    found("FAILED", sentence, examine("--listen", address, "--insecure"))


def test_a_server_for_others_takes_tls(examine: Doctor, pki: Path) -> None:
    found("FAILED", "0.0.0.0:0: off this machine it takes TLS", examine("--listen", "0.0.0.0:0"))
    assert examine("--listen", "0.0.0.0:0", "--keys", str(pki))[0] == 0


# This host


def test_a_state_folder_that_cannot_be(examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    found("FAILED", "clients cannot remember there: ", examine("--state", str(tmp_path / "file" / "state")))
    monkeypatch.setattr(host_checks, "LITTLE", 1 << 80)
    found("warning", "clients can remember there; ", examine("--state", str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script before all other programs."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return write


def test_whether_the_clock_is_kept(
    examine: Doctor, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("timedatectl", '[ "$*" = "show --property=NTPSynchronized --value" ] && echo no')
    found("warning", "UTC, not synchronised, and certificates begin and end by it", examine())
    program("timedatectl", "echo yes")
    assert any(line.endswith(" UTC, synchronised") for line in examine()[1])
    program("timedatectl", "exec sleep 60")
    monkeypatch.setattr(host_checks, "CLOCK_SECONDS", 0.2)
    assert any(line.endswith("; whether it is synchronised is not known here") for line in examine()[1])


def test_an_nvidia_smi_that_fails(
    examine: Doctor, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program("nvidia-smi", "echo driver and library do not match; exit 18")
    found("warning", "no GPU is used: nvidia-smi: driver and library do not match", examine())


@pytest.mark.process
def test_gpus_that_torch_cannot_use(examine: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000000-no-such")
    found("FAILED", "GPU-00000000-no-such visible, and torch ", examine())


def test_gpus_and_a_torch_that_is_broken_or_well(
    examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    found("FAILED", "gpu: torch cannot be loaded: ImportError: libcudart.so.12: cannot open", examine())
    (tmp_path / "torch.py").write_text(
        "__version__ = '9'\nclass cuda:\n    is_available = lambda: True\n    device_count = lambda: 2"
    )
    assert "ok       gpu: 0, 1; torch 9 can use 2" in examine()[1]


def installed(folder: Path, name: str, version: str, *lines: str) -> None:
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    )


@pytest.mark.parametrize(
    ("distribution", "sentence"),
    [
        (("flwr", "1.38.0"), "versions: flwr 1.38.0: must be "),
        (("protobuf", "7.35.0"), "versions: protobuf 7.35.0: must be "),
        (("fedshare", "0", "Requires-Dist: no-such-thing"), "versions: no-such-thing is not installed: pip install"),
        (("fedshare", "0", "Requires-Python: >=4"), f"versions: Python 3.{sys.version_info[1]}"),
    ],
)
def test_versions_that_do_not_fit(
    examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: tuple[str, ...], sentence: str
) -> None:
    installed(tmp_path / "site", *distribution)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found("FAILED", sentence, examine())


@pytest.mark.process
def test_protobuf_in_python(tmp_path: Path) -> None:
    environment = os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "fedshare", "doctor", "--state", str(tmp_path), "--listen", "nonsense"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert "warning  versions: protobuf runs as python, far slower than upb" in done.stdout
    assert "FAILED   'nonsense': an address is HOST:PORT" in done.stdout
    assert (done.returncode, done.stderr) == (2, "")


# The config


def test_the_digest_is_the_one_that_a_client_insists_on(examine: Doctor) -> None:
    with served(None) as server:
        status, lines = examine(server.address, "strategy=local", "rounds=3")
        assert status == 0
        digest = hashlib.sha256(agreement.agreed(compose.resolved(["strategy=local", "rounds=7"])).encode()).hexdigest()
        assert [line for line in lines if line.startswith(f"ok       config: {digest[:12]}, ")]
        found("FAILED", "rouns: no such key (did you mean rounds?)", examine(server.address, "rouns=3"))


def test_the_server_says_what_it_would_say_to_a_client(examine: Doctor, pki: Path) -> None:
    overrides = ["data=digits", "partition.clients=2"]
    digest = hashlib.sha256(agreement.agreed(compose.resolved(overrides)).encode()).hexdigest()
    settings = Settings(fedshare.__version__, config_sha256=digest, clients=2)
    server = StreamServer(f"{HOST}:0", Identity.load(pki / "server"), settings, lambda line: None)
    server.start()
    try:
        status, lines = examine(server.address, *overrides, "--keys", str(pki / "client-1"))
        assert f"ok       {server.address}: would let client 1 in" in lines
        assert [line for line in lines if line.startswith("ok       clock: the server's, to within 0.")]
        assert status == 0
        found(
            "FAILED",
            "client 1 was refused: its config is ",
            examine(server.address, *overrides, "seed=1", "--keys", str(pki / "client-1")),
        )
        assert server.present() == []
        assert server.journal.refused == {}
    finally:
        server.close()
