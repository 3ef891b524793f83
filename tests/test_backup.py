"""Backup and restore as docs/deployment.md has them: its commands are run, while the run goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import world
from deployed import Command, Deployment, assert_equal, certificates, lines, simulated
from fedshare.experiments import cli
from fedshare.identity import marks
from fedshare.identity.identity import Identity
from fedshare.runs import RunFolder, checkpoint, verify
from world import PATIENCE

LONG = ["data=digits", "model=logistic", "partition.clients=3", "strategy=local", "rounds=40", "checkpoint_every=5"]
LONG += ["client.batch_size=8", "client.epochs=1"]
STEPS = ("saving the server", "saving a client", "checking", "restoring the server", "going on", "restoring a client")


def documented() -> dict[str, str]:
    """The commands of the section, by what they are for."""
    text = (world.ROOT / "docs" / "deployment.md").read_text()
    section = re.split(r"^## ", text.partition("\n## Backup and restore\n")[2], flags=re.MULTILINE)[0]
    found = re.findall(r"^```bash\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return dict(zip((*STEPS, "certifying"), found, strict=True))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with `fedshare`, as it is typed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "fedshare").write_text(f'#!/bin/sh\nexec {sys.executable} -m fedshare "$@"\n')
    (folder / "fedshare").chmod(0o755)
    return folder


def type_in(what: str, program: Path, **variables: Path | str) -> str:
    """Run the documented commands with these variables, and no other of theirs; what they say."""
    script = documented()[what]
    named = set(re.findall(r"\$([A-Z]+)", script))
    assert named <= set(variables), f"{what}: {named - set(variables)}"
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment |= {"PATH": f"{program}:{os.environ['PATH']}", "FEDSHARE_STATE": str(variables.get("STATE", ""))}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Hosts(Deployment):
    """A server and three clients whose hosts have their own state folders: host/state, and client-N/state."""

    def client(self, id: int, *flags: str) -> Command:
        return super().client(id, "--state", str(self.state(id)), *flags)

    def state(self, id: int) -> Path:
        return self.folder / f"client-{id}" / "state"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("undisturbed") / "run", *LONG)


@pytest.fixture
def lost(tmp_path: Path, keys: Path) -> Iterator[Hosts]:
    """What is on the hosts that will be lost."""
    (tmp_path / "old").mkdir()
    with Hosts(tmp_path / "old", keys, *LONG) as made:
        yield made


def saved(hosts: Hosts, backup: Path, program: Path, *clients: int, then: Callable[[], None] = lambda: None) -> int:
    """Back up while the run goes on, past its second checkpoint; the round of the last that the backup has."""
    server = hosts.server()
    for id in range(3):
        hosts.client(id)
    hosts.reach(11, server)
    where = {"RUN": hosts.run, "KEYS": hosts.keys}
    type_in("saving the server", program, STATE=hosts.folder / "state", BACKUP=backup, **where)
    for id in clients:
        type_in("saving a client", program, STATE=hosts.state(id), BACKUP=backup / f"client-{id}")
    then()
    assert lines(backup / "run" / "metrics.jsonl") < 40, f"the run was over before it was copied:\n{server.said}"
    assert "whole: " in type_in("checking", program, BACKUP=backup)
    return checkpoint.rounds(backup / "run" / "checkpoints")[0]


@pytest.mark.process
def test_a_backup_made_while_a_run_goes_on_leads_elsewhere_to_the_same_digest(
    lost: Hosts, undisturbed: Path, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = tmp_path / "backup"
    last = saved(lost, backup, program, 0, 1, 2)
    for command in lost.commands:
        command.kill()
    (tmp_path / "new").mkdir()
    new = Hosts(tmp_path / "new", tmp_path / "new" / "keys", *LONG)
    where = {"RUN": new.run, "KEYS": new.keys, "BACKUP": backup, "STATE": new.folder / "state"}
    shutil.rmtree(lost.folder)  # nothing of it is left
    type_in("restoring the server", program, **where)
    for id in range(3):
        type_in("restoring a client", program, BACKUP=backup / f"client-{id}", STATE=new.state(id))
    monkeypatch.setenv("FEDSHARE_STATE", str(new.folder / "state"))
    assert RunFolder(new.run).is_ours(RunFolder(new.run).config.read_text()), "the mark key came with it"
    assert marks.is_marked("other", [marks.mark("other")])
    with new:
        server, clients = restarted(new, program), [new.client(id) for id in range(3)]
        assert server.wait() == 0, server.said
        assert [client.wait() for client in clients] == [0, 0, 0], clients[0].said
        assert f"going on with {new.run} after round {last}" in server.said
        assert "dropped" not in server.said
    assert_equal(new.run, undisturbed)


def restarted(hosts: Hosts, program: Path) -> Command:
    """The server, by the documented command."""
    script = documented()["going on"]
    where = {"RUN": str(hosts.run), "KEYS": str(hosts.keys), "LISTEN": hosts.address}
    words = [re.sub(r"\$([A-Z]+)", lambda match: where[match[1]], word.strip('"')) for word in script.split()]
    assert words[:2] == ["fedshare", "server"]
    return hosts._start(*words[1:])


@pytest.mark.process
def test_clients_that_are_ahead_of_a_restored_server_go_back_with_it(
    lost: Hosts, undisturbed: Path, program: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    last = saved(lost, backup, program, then=lambda: lost.commands[0].kill())
    assert max(rounds(lost.state(0))) > last, "a memory that the restored server never heard of"
    new, state = tmp_path / "new" / "run", tmp_path / "new" / "state"
    new.parent.mkdir()
    type_in("restoring the server", program, RUN=new, KEYS=tmp_path / "new" / "keys", BACKUP=backup, STATE=state)
    lost.run = new  # at the same address, for clients that have waited all the while
    server = restarted(lost, program)
    assert server.wait() == 0, server.said
    assert [client.wait() for client in lost.commands[1:4]] == [0, 0, 0], lost.commands[1].said
    assert f"going on with {new} after round {last}" in server.said
    assert "dropped" not in server.said
    assert_equal(new, undisturbed)


def rounds(state: Path) -> list[int]:
    """Of which rounds a client has memories."""
    return [int(path.name.split("-")[1]) for path in state.rglob("round-*.safetensors")]


@pytest.mark.process
def test_a_restored_authority_renews_and_makes_certificates_that_all_accept(
    keys: Path, program: Path, tmp_path: Path
) -> None:
    shutil.copytree(keys, backup := tmp_path / "backup" / "keys")
    (tmp_path / "keys").mkdir(mode=0o700)
    shutil.copytree(backup / "ca", tmp_path / "keys" / "ca")  # the authority alone
    said = type_in("certifying", program, KEYS=tmp_path / "keys", HOST="new.example.org", CLIENTS="4")
    assert "made server.key, ca.crt, server.crt for new.example.org, localhost, 127.0.0.1" in said
    assert Identity.load(tmp_path / "keys" / "client-3").client_id == 3
    with Deployment(tmp_path, tmp_path / "keys", *LONG, "rounds=1") as made:
        server = made.server("--clients", "1")
        made.keys = keys  # a client of before
        client = made.client(0)
        assert server.wait() == 0, server.said
        assert client.wait() == 0, client.said
    shutil.copytree(backup, tmp_path / "all")
    said = type_in("certifying", program, KEYS=tmp_path / "all", HOST="new.example.org", CLIENTS="3")
    assert re.search(r"/server: made server\.crt for localhost, 127\.0\.0\.1, new\.example\.org until ", said)
    assert re.search(r"/client-2: made client\.crt until ", said), "those of the fixture end in 30 days"
    assert ".key" not in said, "whoever has a key keeps it"


@pytest.mark.process
def test_a_copy_in_the_wrong_order_is_found_and_not_gone_on_with(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    for name in ("digests.jsonl", "metrics.jsonl", "seals.jsonl"):  # copied before the checkpoints were
        path = copy / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if (json.loads(line).get("round") or 0) <= 20))
    same, sentence = verify(RunFolder(copy))
    assert not same
    assert "digests.jsonl has no line for this checkpoint" in sentence
    with pytest.raises(SystemExit) as ended:
        cli.main(["resume", str(copy)])
    assert ended.value.code == 2
    assert "its digests.jsonl does not lead to the checkpoint of round 40" in capsys.readouterr().err
