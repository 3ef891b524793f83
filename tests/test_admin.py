"""`fedshare admin`: a running server obeys its user, and nobody else; old memories are cleared up with care."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_stream import Guest, ask, converse, hello, serving, until_present, wait_until

from deployed import Deployment, assert_equal, certificates, eventually, simulated
from fedshare.errors import UserError
from fedshare.experiments import cli
from fedshare.experiments.hosts import orders
from fedshare.experiments.hosts.desk import Desk
from fedshare.runs import RunFolder, audit
from fedshare.transport import control, memories
from fedshare.transport.control import Control
from fedshare.transport.stream import members as members_module
from world import PATIENCE

SMALL = ["data=digits", "model=logistic", "partition.clients=3"]
LONG = [*SMALL, "strategy=local", "rounds=16", "checkpoint_every=7", "client.batch_size=4", "client.epochs=1"]


def admin(*arguments: str | Path) -> int:
    """Its exit status; in this process, for what it imports is light."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["admin", *map(str, arguments)])
    return ended.value.code if isinstance(ended.value.code, int) else 0


def entries(run: Path, event: str) -> list[dict[str, Any]]:
    return [dict(seal.covers) for seal in audit.read(run / "audit.jsonl") if seal.covers["event"] == event]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


# A deployment.


@pytest.mark.process
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Deployment(tmp_path, keys, *LONG) as deployment:
        run = deployment.run
        server, clients = deployment.server(), [deployment.client(id, "--stay") for id in range(3)]
        deployment.reach(2, server)
        assert admin(run, "status", "--json") == 0
        status = json.loads(capsys.readouterr().out)
        assert (status["connected"], status["rounds"], status["banned"]) == ([0, 1, 2], 16, {})
        assert admin(run, "stop", "--wait", str(PATIENCE)) == 0
        assert server.wait() == 0, server.said
        after = deployment.rounds()
        assert after < 16
        assert f"stopped by the operator after round {after}; {run} keeps the rounds before; " in server.said
        clients[0].until(f"the run halted: stopped by the operator after round {after}")
        assert after in _saved(run)
        assert not (run / control.NAME).exists()
        assert admin(run, "status") == 2
        assert "no server is running there" in capsys.readouterr().err
        again = deployment.server()
        assert again.wait() == 0, again.said
        assert_equal(run, simulated(tmp_path / "simulated", *LONG))
    assert [entry["command"] for entry in entries(run, "operator")] == ["stop"]
    assert [entry["how"] for entry in entries(run, "ended")] == ["stopped by the operator", "done"]
    assert [entry["round"] for entry in entries(run, "began") + entries(run, "resumed")] == [0, after]
    assert len(entries(run, "round")) == 16
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", str(run)])
    assert ended.value.code == 0
    assert "; audit log whole, " in capsys.readouterr().out
    log = run / "audit.jsonl"
    log.write_text(log.read_text().replace('"command":"stop"', '"command":"save"'))
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", str(run)])
    assert ended.value.code == 1
    assert "does not follow from the lines before: the log was altered" in capsys.readouterr().out
    altered = deployment.server()
    assert altered.wait() == 2, altered.said
    assert "audit.jsonl: line" in altered.said


def _saved(run: Path) -> list[int]:
    from fedshare.runs import checkpoint

    return list(checkpoint.rounds(RunFolder(run).checkpoints))


@pytest.mark.process
def test_a_client_is_suspended_and_another_banned_for_good(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = [*LONG, "rounds=1000000", "checkpoint_every=1000000"]
    with Deployment(tmp_path, keys, *endless) as deployment:
        run = deployment.run
        server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
        deployment.reach(1, server)
        assert admin(run, "suspend", "1", "--rounds", "2") == 0
        server.until("client 1 takes part again: the rounds for which it was suspended are over")
        missed = [row["round"] for row in RunFolder(run).rows() if 1 in row["absent"]]
        assert len(missed) == 2
        assert admin(run, "checkpoint", "--wait", str(PATIENCE)) == 0
        assert len(_saved(run)) == 1
        assert admin(run, "ban", "2", "--reason", "sends garbage") == 0
        assert clients[2].wait() == 2
        line = f"{deployment.address}: client 2 was refused: the operator has banned it: sends garbage"
        assert clients[2].said.splitlines()[-1] == f"fedshare: {line}"
        deployment.reach(deployment.rounds() + 2, server)
        assert 2 in RunFolder(run).rows()[-1]["absent"]
        server.kill()
        server = deployment.server("--clients", "2")
        late = deployment.client(2)
        assert late.wait() == 2
        assert late.said.splitlines()[-1] == f"fedshare: {line}"
        eventually(lambda: control.listens(run / control.NAME), "the socket of the new server")
        capsys.readouterr()
        assert admin(run, "status") == 0
        assert "banned     2: sends garbage" in capsys.readouterr().out
        assert admin(run, "unban", "2") == 0
        deployment.client(2)
        eventually(lambda: 2 in RunFolder(run).rows()[-1]["clients"], "client 2 takes part")
        wrong = (
            ["ban", "9"],
            ["ban", "x"],
            ["unban", "0"],
            ["resume", "0"],
            ["dance"],
            ["suspend", "0", "--rounds", "0"],
        )
        for bad in wrong:
            capsys.readouterr()
            assert admin(run, *bad) == 2, bad
            (error,) = capsys.readouterr().err.splitlines()
            assert error.startswith("fedshare: "), bad
        assert admin(run, "stop", "--wait", str(PATIENCE)) == 0
        assert server.wait() == 0, server.said
    asked = [(entry["command"], entry.get("client")) for entry in entries(run, "operator")]
    assert asked == [("suspend", 1), ("checkpoint", None), ("ban", 2), ("unban", 2), ("stop", None)]
    assert entries(run, "operator")[2]["reason"] == "sends garbage"
    assert any(entry["client"] == 2 and "banned" in entry["reason"] for entry in entries(run, "refused"))
    assert audit.flaw(run / "audit.jsonl", deployment.rounds()) is None


@pytest.mark.process
def test_a_run_that_waits_for_its_clients_is_stopped_at_once_and_leaves_no_run(keys: Path, tmp_path: Path) -> None:
    with Deployment(tmp_path, keys, *SMALL) as deployment:
        server = deployment.server()
        server.until("waiting for 3 clients")
        assert admin(deployment.run, "checkpoint") == 2
        second = deployment.server("--listen", "127.0.0.1:0")
        assert second.wait() == 2, second.said
        assert "another process is running this run" in second.said
        server.kill()
        assert list(deployment.run.iterdir()) == [deployment.run / control.NAME], "what a killed server leaves"
        server = deployment.server()
        server.until("waiting for 3 clients")
        assert admin(deployment.run, "stop", "--wait", str(PATIENCE)) == 0
        assert server.wait() == 0, server.said
        assert server.said.splitlines()[-1].endswith("stopped by the operator before its first round")
    assert not (deployment.run / "config.yaml").exists()


# The server's end of a stream.


def test_who_is_expelled_hears_why_and_what_was_asked_of_it_fails() -> None:
    waiting = threading.Event()
    with serving() as server:
        guest = Guest(server.address, answer=lambda body: [b"", b"x"] if waiting.wait(PATIENCE) else [])
        until_present(server, 0)
        server.send(0, [b"a"])
        wait_until(lambda: bool(guest.asked), "it is asked")
        server.expel(0, "the operator has banned it")
        (answer,) = server.receive(PATIENCE)
        assert (answer.body, answer.reason) == (None, "the operator has banned it")
        assert server.present() == []
        waiting.set()
        assert str(guest.end()) == f"{server.address}: client 0 was refused: the operator has banned it"
        Guest(server.address)
        until_present(server, 0)
        assert ask(server, 0, b"b") == b"re b"


def test_who_is_expelled_and_does_not_read_is_cut_off_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "CLOSE_DEADLINE", 0.2)
    with serving() as server, socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as deaf:
        del deaf
        guest = Guest(server.address)
        until_present(server, 0)
        connection = server.members.by_id[0].connection
        assert connection is not None
        server.send(0, [bytes(50_000_000)])
        guest.client._turns.inbox.put(None)
        server.expel(0, "enough")
        wait_until(connection.cut.is_set, "its connection is cut")
        assert server.connected() == []


def test_who_is_banned_is_refused_and_who_is_suspended_stays_and_is_not_there() -> None:
    with serving(clients=2) as server:
        guests = [Guest(server.address, id) for id in range(2)]
        until_present(server, 0, 1)
        server.suspend([1])
        assert (server.present(), server.connected()) == ([0], [0, 1])
        server.suspend([])
        assert server.present() == [0, 1]
        server.entrance.banned = {1: ""}
        (down,), _, _ = converse(server.address, hello(client=1))
        assert down.refusal.reason == "client 1 was refused: the operator has banned it"
        assert server.connected() == [0, 1], "to cut it off is another thing"
        assert [guest.error for guest in guests] == [None, None]


def test_a_ban_holds_before_a_server_that_resumes_listens(tmp_path: Path) -> None:
    (tmp_path / "orders.json").write_text('{"banned": {"1": "why"}, "suspended": {"0": 0}}')
    with serving(clients=2) as server:
        Desk().serve(server, str(tmp_path))
        guest = Guest(server.address, 1)
        assert str(guest.end()) == f"{server.address}: client 1 was refused: the operator has banned it: why"
        Guest(server.address, 0)
        wait_until(lambda: server.connected() == [0], "client 0 is connected")
        assert server.present() == []


# The socket.


@contextlib.contextmanager
def listening(path: Path) -> Iterator[Control]:
    def answer(request: dict[str, Any], user: int) -> dict[str, Any]:
        if request.get("command") == "fail":
            raise UserError("no such command")
        return {"user": user, **request}

    made = Control(path, answer)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


def test_a_request_is_answered_to_this_user(path: Path) -> None:
    with listening(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert control.ask(path, {"command": "x"}) == {"user": os.geteuid(), "command": "x"}
        with pytest.raises(UserError, match=r"^no such command$"):
            control.ask(path, {"command": "fail"})
    assert not path.exists()


def test_a_path_longer_than_a_socket_s_serves_as_well(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120) / ("b" * 120)
    folder.mkdir(parents=True)
    with listening(folder / "admin.sock"):
        assert control.ask(folder / "admin.sock", {"command": "x"})["command"] == "x"
    assert list(folder.iterdir()) == []


def _raw(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))
        one.sendall(data)
        one.settimeout(PATIENCE)
        said = b""
        while more := one.recv(4096):
            said += more
        return said


@pytest.mark.parametrize(
    "data", [b"\n", b"[1]\n", b"{\n", b"\xff\xfe\n", b"[" * 4000 + b"\n", b'"' + b"x" * 5000 + b"\n", b"{}" * 3000]
)
def test_garbage_gets_one_line_and_disturbs_nobody(data: bytes, path: Path) -> None:
    with listening(path):
        with contextlib.suppress(ConnectionError):  # it need not read all of it
            assert list(json.loads(_raw(path, data))) == ["error"]
        assert control.ask(path, {"command": "x"})["command"] == "x"


def test_who_says_nothing_holds_others_up_for_a_deadline_at_most(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "DEADLINE", 0.3)
    with listening(path), socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert control.ask(path, {"command": "x"})["command"] == "x"


def test_a_second_server_is_refused_and_a_killed_one_s_socket_is_not_in_the_way(path: Path) -> None:
    with listening(path), pytest.raises(UserError, match="another process is running this run"):
        Control(path, lambda *_: {})
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(UserError, match="no server is running there"):
        control.ask(path, {"command": "x"})
    with listening(path):
        assert control.ask(path, {"command": "x"})["command"] == "x"
    path.write_text("a file")
    with pytest.raises(UserError, match="is no socket: move it away"):
        Control(path, lambda *_: {})
    assert path.read_text() == "a file"


def test_a_refusal_is_read_also_where_the_server_has_hung_up_before_it_was_asked(path: Path) -> None:
    """As a server does that is not to be commanded by this user."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def refuse() -> None:
            caller, _ = server.accept()
            with caller:
                caller.sendall(b'{"error": "another user runs this server"}\n')

        with ThreadPoolExecutor(1) as pool:
            for _ in range(20):  # who is first is a matter of chance
                refused = pool.submit(refuse)
                with pytest.raises(UserError, match=r"^another user runs this server$"):
                    control.ask(path, {"command": "x" * 1000})
                refused.result(PATIENCE)


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("open_to_all", [False, True], ids=["by the mode", "by the kernel's word"])
def test_another_user_is_refused(open_to_all: bool, path: Path) -> None:
    program = "import os, sys\nfrom pathlib import Path\nfrom fedshare.transport import control\n"
    program += "os.setuid(65534)\nprint(control.ask(Path(sys.argv[1]), {'command': 'x'}))"
    for folder in [path.parent, *path.parents]:
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    with listening(path):
        if open_to_all:
            path.chmod(0o666)
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=PATIENCE
        )
    why = "another user runs this server" if open_to_all else "only the user who runs the server may command it"
    assert done.stderr.splitlines()[-1].endswith(why), done.stderr


# Orders that stand.


def test_orders_are_recalled_and_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    one, two = orders.Standing(), orders.Standing()
    one.open(tmp_path / "orders.json")
    one.keep({3: "why"}, {1: 2, 2: 0, 4: 1})
    assert one.after_round([1, 2, 4]) == [4]
    two.open(tmp_path / "orders.json")
    assert (two.banned, two.suspended) == ({3: "why"}, {1: 1, 2: 0})
    assert two.after_round([]) == [], "who was there has missed nothing"
    assert two.after_round([1]) == [1]
    for damaged in ("", "[]", '{"banned": {}}', '{"banned": {"x": ""}, "suspended": {}}', "[" * 100_000):
        (tmp_path / "orders.json").write_text(damaged)
        with pytest.raises(UserError, match=r"orders\.json is damaged"):
            orders.Standing().open(tmp_path / "orders.json")


# Memories.

OLD, NEW, PRIVATE = "0" * 16, "1" * 16, "2" * 16


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for run, days in ((OLD, 40), (NEW, 1), (PRIVATE, 50)):
        folder = tmp_path / "state" / run / "client-0"
        folder.mkdir(parents=True)
        (folder / f"round-000003-{'a' * 16}.safetensors").write_bytes(bytes(2000))
        (folder / f"round-000004-{'a' * 16}.safetensors").write_bytes(bytes(500))
        if run == PRIVATE:
            (folder / "ledger").write_text("")
        then = time.time() - days * 86400
        for one in (*folder.iterdir(), folder, folder.parent):
            os.utime(one, (then, then))
    (tmp_path / "state" / "key").write_text("no memory")
    return tmp_path / "state"


def test_memories_are_listed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin("memories", "--state", state) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "clients", "rounds", "size", "last", "used"]
    assert [row.split()[0] for row in rows] == [NEW, OLD, PRIVATE]
    assert rows[0].split()[1:7] == ["1", "3", "to", "4", "2.5", "kB"]
    assert rows[2].endswith("with the cost of private training")
    assert admin("memories", "--state", state / "none") == 0
    assert "holds memories of no run" in capsys.readouterr().out


def test_what_is_old_is_deleted_and_what_is_dear_is_left(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin("memories", "--state", state, "--delete", "all", "--older-than", "30") == 0
    said = capsys.readouterr().out
    assert f"{OLD}: deleted, 2.5 kB" in said
    assert f"{PRIVATE}: left: holds what private training has cost: --delete {PRIVATE} deletes it all the same" in said
    assert sorted(one.name for one in state.iterdir()) == [NEW, PRIVATE, "key"]
    assert admin("memories", "--state", state, "--delete", "2") == 0
    assert sorted(one.name for one in state.iterdir()) == [NEW, "key"]


def test_what_is_kept_or_in_use_is_not_deleted(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin("memories", "--state", state, "--keep", OLD) == 0
    held = memories.take_part(state / NEW)
    assert held is not None
    assert admin("memories", "--state", state, "--delete", "all") == 0
    said = capsys.readouterr().out
    assert f"{OLD}: left: is kept" in said
    assert f"{NEW}: left: a client takes part in it" in said
    for run, why in ((OLD, f"is to be kept: --no-keep {OLD} first"), (NEW, "a client is taking part in this run")):
        assert admin("memories", "--state", state, "--delete", PRIVATE, "--delete", run) == 2
        assert f"{run}: {why}" in capsys.readouterr().err
    assert (state / PRIVATE).exists(), "nothing is deleted where something cannot be"
    os.close(held)
    assert admin("memories", "--state", state, "--no-keep", OLD) == 0
    assert admin("memories", "--state", state, "--delete", OLD, "--delete", NEW) == 0
    assert sorted(one.name for one in state.iterdir()) == [PRIVATE, "key"]


@pytest.mark.parametrize("bad", [["--delete", "f"], ["--delete", ""], ["--older-than", "x"], ["--keep", "3"], ["all"]])
def test_a_bad_command_deletes_nothing(bad: list[str], state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(state.rglob("*"))
    assert admin("memories", "--state", state, *bad) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(state.rglob("*")) == before


def test_what_a_crash_left_half_deleted_is_removed(state: Path) -> None:
    (state / f".deleted-{OLD}-1").mkdir()
    assert admin("memories", "--state", state) == 0
    assert not (state / f".deleted-{OLD}-1").exists()


@pytest.mark.process
def test_a_client_at_work_holds_its_memories(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endless = [*LONG, "rounds=1000000"]
    with Deployment(tmp_path, keys, *endless) as deployment:
        server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
        deployment.reach(2, server)
        state = deployment.folder / "state"
        run = (deployment.run / "run-id").read_text().strip()
        assert admin("memories", "--state", state, "--delete", run) == 2
        assert f"{run}: a client is taking part in this run" in capsys.readouterr().err
        for one in (server, *clients):
            one.signal(signal.SIGTERM)
            one.wait()
        assert admin("memories", "--state", state, "--delete", run) == 0
        assert not (state / run).exists()


@pytest.mark.process
def test_help_is_light() -> None:
    program = "import sys\nfrom fedshare.experiments.cli import main\ntry: main(['admin', 'nowhere', 'status'])\n"
    program += "except SystemExit as end: assert end.code == 2\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
