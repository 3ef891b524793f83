"""Where the clients of a host train, and that their processes are kept alive and ended together."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedshare.errors import UserError
from fedshare.experiments.hosts import host
from fedshare.machine import devices
from fedshare.machine.devices import Place, places, visible_gpus
from world import PATIENCE

CPU = Place(None, None, 1)


@pytest.fixture
def smi(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment whose nvidia-smi is a shell script."""

    def write(script: str) -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return write


TWO = '[ "$*" = "--query-gpu=index --format=csv,noheader" ] && printf "0\\n1\\n"'


def test_nvidia_smi_lists_the_gpus(smi: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    assert visible_gpus(smi(TWO)) == ["0", "1"]
    assert visible_gpus(smi("echo No devices were found")) == []
    assert visible_gpus({"PATH": str(tmp_path / "empty")}) == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo no driver; exit 9", "no driver"), ("exit 9", "exit status 9"), ("exec sleep 60", "not answer in 0.2 s")],
)
def test_an_nvidia_smi_that_fails_or_hangs_is_no_gpu_and_says_so(
    script: str,
    reason: str,
    smi: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(devices, "SMI_SECONDS", 0.2 if "sleep" in script else 15.0)
    assert visible_gpus(smi(script)) == []
    warning = capsys.readouterr().err
    assert warning.startswith("warning: no GPU is used: nvidia-smi: ")
    assert reason in warning
    assert warning.count("\n") == 1


@pytest.mark.parametrize(
    ("allowed", "gpus"),
    [
        ("", []),
        ("1", ["1"]),
        (" 3, 1 ", ["3", "1"]),
        ("GPU-8f5e,MIG-41aa", ["GPU-8f5e", "MIG-41aa"]),
        ("-1", []),
        ("2,-1,0", ["2"]),
        ("NoDevFiles", []),
        ("0,0", ["0"]),
    ],
)
def test_cuda_visible_devices_comes_before_nvidia_smi(
    allowed: str, gpus: list[str], smi: Callable[[str], dict[str, str]]
) -> None:
    assert visible_gpus(smi(TWO) | {"CUDA_VISIBLE_DEVICES": allowed}) == gpus


@pytest.mark.parametrize(
    ("gpu", "per_gpu", "gpus", "seats"),
    [
        ("none", None, "01", "-----"),
        ("none", 2, "01", "-----"),
        ("auto", None, "", "-----"),
        ("auto", 2, "", "-----"),
        ("auto", None, "01", "01---"),
        ("auto", 2, "01", "0101-"),
        ("auto", 3, "01", "01010"),
        ("auto", None, "0123456", "01234"),
        ("0", None, "01", "00000"),
        ("1", 2, "01", "11---"),
        ("0,1", None, "01", "01010"),
        ("1,0", 1, "012", "10---"),
        ("2, 0", None, "012", "20202"),
    ],
)
def test_who_gets_which_gpu(gpu: str, per_gpu: int | None, gpus: str, seats: str) -> None:
    clients = [4, 0, 9, 2, 7]
    found = places(clients, gpu, per_gpu, None, "1", list(gpus), 8)
    assert list(found) == clients
    assert "".join(place.gpu or "-" for place in found.values()) == seats
    assert [place.device for place in found.values()] == ["cpu" if seat == "-" else "cuda" for seat in seats]


def test_a_shared_gpu_is_divided_unless_said_otherwise() -> None:
    found = places([0, 1, 2], "0,1", None, None, "1", ["0", "1"], 8)
    assert [place.memory for place in found.values()] == [0.45, None, 0.45]
    found = places([0, 1, 2], "auto", 1, 0.4, "1", ["0", "1"], 8)
    assert [place.memory for place in found.values()] == [0.4, 0.4, None]


@pytest.mark.parametrize(
    ("threads", "clients", "count"), [("1", 2, 1), ("6", 2, 6), ("auto", 2, 4), ("auto", 3, 2), ("auto", 99, 1)]
)
def test_threads_of_a_client(threads: str, clients: int, count: int) -> None:
    found = places(list(range(clients)), "auto", None, None, threads, ["0"], 8)
    assert {place.threads for place in found.values()} == {count}


def test_no_client_needs_no_place() -> None:
    assert places([], "auto", 2, None, "auto", ["0"], 8) == {}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"gpu": "0,7"}, "--gpu 0,7: no GPU '7' here; visible are 0, 1"),
        ({"gpu": "cuda"}, "--gpu cuda: no GPU 'cuda' here; visible are 0, 1"),
        ({"gpu": ""}, "--gpu : no GPU '' here; visible are 0, 1"),
        ({"gpu": "0", "gpus": []}, "--gpu 0: no GPU '0' here; none is visible; --gpu none trains on the CPU"),
        ({"gpu": "1,0,1"}, "--gpu 1,0,1: names 1 more than once"),
        ({"clients": [3, 3]}, "--id 3,3: names 3 more than once"),
        ({"per_gpu": 0}, "--per-gpu 0: takes a number from 1 on"),
        ({"memory": 0.0}, "--gpu-memory 0: takes a fraction of one GPU, above 0 and at most 1"),
        ({"memory": 1.5}, "--gpu-memory 1.5: takes a fraction of one GPU, above 0 and at most 1"),
        ({"memory": float("nan")}, "--gpu-memory nan: takes a fraction of one GPU, above 0 and at most 1"),
        ({"threads": "0"}, "--threads 0: takes a number from 1 on, or auto"),
        ({"threads": "-2"}, "--threads -2: takes a number from 1 on, or auto"),
        ({"threads": "many"}, "--threads many: takes a number from 1 on, or auto"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(changed: dict[str, object], line: str) -> None:
    good = {"clients": [0], "gpu": "0", "per_gpu": None, "memory": None, "threads": "1", "gpus": ["0", "1"], "cores": 8}
    with pytest.raises(UserError) as error:
        places(**good | changed)  # type: ignore[arg-type]
    assert str(error.value) == line


def test_a_place_says_itself() -> None:
    shown = [CPU, Place(None, None, 4), Place("0", None, 1), Place("0", 0.4, 1), Place("MIG-4", 0.225, 1)]
    assert [str(place) for place in shown] == [
        "cpu, 1 thread",
        "cpu, 4 threads",
        "gpu 0",
        "gpu 0 (40 %)",
        "gpu MIG-4 (22 %)",
    ]


FAKE_TORCH = """
import os
names = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"
print(*(repr(os.environ.get(name)) for name in names))
"""


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In new processes, a torch that prints the environment it loads in."""
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.mark.process
@pytest.mark.usefixtures("fake_torch")
def test_the_environment_is_set_before_torch_loads() -> None:
    program = """
        import sys
        from fedshare.machine import devices
        assert "torch" not in sys.modules
        devices.apply(devices.Place("1", 0.4, 3))
        import torch
        devices.apply(devices.Place("1", None, 3))
        try: devices.apply(devices.Place("0", None, 3))
        except RuntimeError as error: print(error)
    """
    done = python(program, capture_output=True, check=True)
    assert done.stdout.splitlines() == [
        "'1' '3' '3' ':4096:8'",
        "gpu 0: torch loaded before CUDA_VISIBLE_DEVICES was set",
    ]


def test_limits_of_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    fractions: list[float] = []
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for place in (Place(None, None, 3), Place("0", None, 1), Place("0", 0.4, 2)):
        devices.limit(place)
    assert threads == [3, 1, 2]
    assert fractions == [0.4]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices.limit(CPU)
    with pytest.raises(UserError, match=r"^gpu 0 \(40 %\): torch .* cannot use it; --gpu none trains on the CPU$"):
        devices.limit(Place("0", 0.4, 1))


def python(program: str, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, text=True, timeout=PATIENCE, **options)  # type: ignore[call-overload]


def untimed(out: str) -> str:
    """Lines without the time, which some have."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", out)


def client(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]


@pytest.mark.process
@pytest.mark.usefixtures("fake_torch")
def test_each_client_sees_its_own_device(capfd: pytest.CaptureFixture[str]) -> None:
    commands = {id: client("import torch") for id in (0, 3)}
    assert host.start(commands, {0: Place("1", 0.4, 2), 3: CPU}) == 0
    lines = untimed(capfd.readouterr().out).splitlines()
    assert [line for line in lines if line.startswith("client 0")] == [
        "client 0 | starting on gpu 1 (40 %)",
        "client 0 | '1' '2' '2' ':4096:8'",
    ]
    assert [line for line in lines if line.startswith("client 3")] == [
        "client 3 | starting on cpu, 1 thread",
        "client 3 | '' '1' '1' None",
    ]


@pytest.mark.process
def test_lines_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    program = """
        import sys, time
        sys.stdout.write("one\\ntw"); sys.stdout.flush(); time.sleep(0.3)
        sys.stderr.write("o\\n\\nth\\u00e9 end")
    """
    assert host.start({5: client(program)}, {5: CPU}) == 0
    assert untimed(capfd.readouterr().out).splitlines()[1:] == [
        f"client 5 | {line}" for line in ("one", "two", "", "thé end")
    ]


CRASHES_TWICE = """
    import os, signal, sys
    from pathlib import Path
    starts = Path(sys.argv[1])
    with starts.open("a") as file: file.write(".")
    count = starts.stat().st_size
    print("start", count)
    if count == 1: os.kill(os.getpid(), signal.SIGKILL)
    if count == 2: sys.exit(255)
"""


@pytest.mark.process
def test_a_client_that_crashes_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "BACKOFF", (0.01, 0.02, PATIENCE))
    assert host.start({3: client(CRASHES_TWICE, tmp_path / "starts")}, {3: CPU}) == 0
    assert untimed(capfd.readouterr().out).splitlines() == [
        "client 3 | starting on cpu, 1 thread",
        "client 3 | start 1",
        "client 3 | ended by signal 9 (Killed); starting again in 0.01 s",
        "client 3 | starting on cpu, 1 thread",
        "client 3 | start 2",
        "client 3 | exit status 255; starting again in 0.02 s",
        "client 3 | starting on cpu, 1 thread",
        "client 3 | start 3",
    ]


def test_waits_grow_to_the_longest_and_begin_anew_after_a_long_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(host.time, "monotonic", lambda: now[0])
    one = host._Client(0, ["false"], CPU)
    for life in (1, 1, 1, 1, 1, 1, 1, 31, 1):
        one.start()
        assert one.process
        one.process.wait()
        now[0] += life
        one.supervise()
        now[0] = one.due
    lines = untimed(capsys.readouterr().out).splitlines()
    waits = [line.split(" in ")[1] for line in lines if "again" in line]
    assert waits == ["1 s", "2 s", "4 s", "8 s", "16 s", "30 s", "30 s", "1 s", "2 s"]


@pytest.mark.process
@pytest.mark.parametrize("status", [2, 3])
def test_bad_input_and_refusal_are_final_and_the_worst_status_is_returned(
    status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = {0: client("print('done')"), 1: client("import sys; sys.exit(int(sys.argv[1]))", status)}
    assert host.start(commands, {0: CPU, 1: CPU}) == status
    out = untimed(capfd.readouterr().out)
    assert f"client 1 | exit status {status}; not started again\n" in out
    assert out.count("starting") == 2


PARENT = """
    import sys
    from fedshare.machine.devices import Place
    from fedshare.experiments.hosts import host
    grace, *programs = sys.argv[1:]
    host.GRACE = float(grace)
    commands = {id: [sys.executable, "-c", program] for id, program in enumerate(programs)}
    sys.exit(host.start(commands, {id: Place(None, None, 1) for id in commands}))
"""
# Connects to the test, which so learns when the client is up, and when it is gone.
LIVES = """
import signal, socket, sys, time
{first}
home = socket.create_connection(("127.0.0.1", {port}))
home.sendall(b"up")
time.sleep(3600)
"""
IN_ORDER = "signal.signal(signal.SIGTERM, lambda *_: (print('leaving'), sys.exit()))"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@contextmanager
def running(*firsts: str, grace: float = PATIENCE) -> Iterator[tuple["subprocess.Popen[str]", list[socket.socket]]]:
    """A parent whose clients are up, and a connection to each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        programs = [LIVES.format(first=first, port=server.getsockname()[1]) for first in firsts]
        parent = subprocess.Popen(client(PARENT, grace, *programs), stdout=subprocess.PIPE, text=True)
        homes: list[socket.socket] = []
        try:
            with parent:
                for _ in firsts:
                    homes.append(server.accept()[0])
                    homes[-1].settimeout(PATIENCE)
                    assert homes[-1].recv(2) == b"up"
                yield parent, homes
        finally:
            parent.kill()
            for home in homes:
                home.close()


def gone(home: socket.socket) -> bool:
    """Whether the client ends; waits for it."""
    try:
        return home.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.process
def test_sigterm_is_passed_on_and_clients_end_in_order() -> None:
    with running(IN_ORDER, IN_ORDER) as (parent, homes):
        parent.send_signal(signal.SIGTERM)
        out = untimed(parent.communicate(timeout=PATIENCE)[0])
        assert all(map(gone, homes))
    assert parent.returncode == 0
    assert "client 0 | leaving\n" in out
    assert "client 1 | leaving\n" in out
    assert f"waiting up to {PATIENCE:g} s for clients to end: 0, 1; a second signal kills them\n" in out


@pytest.mark.process
def test_a_client_deaf_to_sigterm_is_killed() -> None:
    with running(IN_ORDER, DEAF, grace=5) as (parent, homes):
        parent.send_signal(signal.SIGTERM)
        out = untimed(parent.communicate(timeout=PATIENCE)[0])
        assert all(map(gone, homes))
    assert parent.returncode == 128 + signal.SIGKILL
    assert "client 1 | did not end in time: killed\n" in out
    assert "client 0 | did not end" not in out


@pytest.mark.process
def test_a_second_signal_kills_at_once() -> None:
    with running(DEAF, grace=3600) as (parent, homes):
        parent.send_signal(signal.SIGTERM)
        assert parent.stdout
        while "waiting" not in parent.stdout.readline():
            assert parent.poll() is None
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=PATIENCE)
        assert all(map(gone, homes))
    assert parent.returncode == 128 + signal.SIGKILL


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_killing_the_parent_ends_the_clients() -> None:
    with running(IN_ORDER, DEAF) as (parent, homes):
        parent.kill()
        assert all(map(gone, homes))
