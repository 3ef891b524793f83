"""--config-dir: somebody's own configs, and the modules that they name, wherever a command makes something of them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_ledger_commands import refuses, says
from test_runs import fedshare

from fedshare.experiments.config import application, compose
from fedshare.runs import RunFolder, verify

NET = """
from math import prod
from torch import nn
def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 4), nn.ReLU(), nn.Linear(4, classes))
"""
SMALL = ["partition=iid", "partition.clients=2", "clients_per_round=null", "rounds=1", "client.epochs=1"]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model, the module that it names, and a preset; nothing of it can be imported so far."""
    folder = tmp_path / "Ann's configs"
    (folder / "model").mkdir(parents=True)
    (folder / "own_net_of_anns.py").write_text(NET)
    target = "_target_: own_net_of_anns.net\nshape: ${data.shape}\nclasses: ${data.classes}\n"
    (folder / "model" / "mine.yaml").write_text(target)
    (folder / "exp.yaml").write_text("defaults: [config, override model: mine, _self_]\npartition: {clients: 2}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("own_net_of_anns", None)


def forget() -> None:
    """As in a new process."""
    sys.modules.pop("own_net_of_anns", None)
    sys.path[:] = [place for place in sys.path if "Ann's" not in place]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_all_that_a_run_s_folder_serves_finds_its_modules(
    workers: int, conf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, own = tmp_path / "run", ("--config-dir", str(conf))
    given = ["model=mine", "strategy=onebyte", f"workers={workers}", f"folder={folder}", *SMALL]
    assert fedshare("run", *given, *own) == 0
    commands = {
        "replay": ("replay", str(folder)),
        "undo": ("undo", str(folder), "--peer", "0"),
        "export": ("export", str(folder), str(tmp_path / "whole.safetensors")),
        "resume": ("resume", str(folder), "--rounds", "2"),
    }
    for command in commands.values():
        forget()
        line = refuses(capfd, *command)
        assert line.startswith("model._target_=own_net_of_anns.net: cannot be imported: "), line
        says(capfd, *command, *own)
    assert verify(RunFolder(folder))[1].startswith("whole: 2 rounds")


def test_a_pretraining_finds_them_when_it_goes_on(
    conf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, own = tmp_path / "backbone", ("--config-dir", str(conf))
    assert fedshare("pretrain", "model=mine", "epochs=1", "threads=1", f"folder={folder}", *own) == 0
    forget()
    assert "own_net_of_anns.net: cannot be imported" in refuses(capfd, "pretrain", "--resume", folder)
    assert fedshare("pretrain", "--resume", str(folder), *own) == 0


COMMANDS = {
    "run": ("run",),
    "pretrain": ("pretrain",),
    "pretrain again": ("pretrain", "--resume", "x"),
    "matrix": ("matrix",),
    "resume": ("resume", "x"),
    "replay": ("replay", "x"),
    "undo": ("undo", "x", "--peer", "1"),
    "export": ("export", "x", "y.safetensors"),
    "server": ("server", "--listen", "127.0.0.1:0"),
    "client": ("client", "127.0.0.1:9", "--id", "0"),
    "several clients": ("client", "127.0.0.1:9", "--id", "0,1"),
}


@pytest.mark.parametrize("flag", ["--config-dir", "-cd"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_not_there_is_said_in_one_line(
    command: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "client" in command or command == "server":
        pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    monkeypatch.chdir(tmp_path)
    assert refuses(capfd, *COMMANDS[command], flag, "nowhere") == "--config-dir nowhere: no such directory"
    assert not list(tmp_path.iterdir())


# A deployment


@pytest.mark.parametrize("given", [["-cd", "{}"], ["--config-dir={}"], ["--config-dir", "{}", "-cn", "exp"]])
def test_a_host_s_clients_are_told(given: list[str], conf: Path) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from fedshare.experiments.hosts import clients
    from fedshare.experiments.hosts.deploy_options import parser
    from fedshare.machine.devices import Place

    line = ["localhost:9", "data=digits", "--id", "0,1", *(part.format(conf) for part in given)]
    options = parser("client").parse_intermixed_args(line)
    options.trust = ["mylab", "another.package"]
    command = clients.command(options, 1, Place(None, None, 1))
    again = parser("client").parse_intermixed_args(command[command.index("client") + 1 :])
    assert (again.config_dir, again.config_name) == (str(conf), "exp" if "exp" in given else None)
    assert (again.overrides, again.id) == (["data=digits"], "1")
    assert again.trust == ["mylab", "another.package"]


def test_a_doctor_composes_what_a_client_would(conf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from fedshare.experiments.hosts import agreement

    app = application.hydra(str(conf))
    for given, config in (
        (["model=mine", "partition.clients=2"], compose.resolved(["model=mine", "partition.clients=2"], "config", app)),
        (["-cn", "exp"], compose.resolved([], "exp", app)),
        (["-cn", "exp", "seed=3"], compose.resolved(["seed=3"], "exp", app)),
    ):
        fedshare("doctor", *given, "-cd", str(conf))
        assert f"ok       config: {agreement.digest(config)[:12]}, " in capfd.readouterr().out
    assert fedshare("doctor", "model=mine") == 2
    assert "no such model" in capfd.readouterr().out


# The server's words, the clients', and whether they find the module by PYTHONPATH alone.
DEPLOYED = {
    "a folder on both sides": (["model=mine", *SMALL, "-cd", "{}"], ["-cd", "{}"], False),
    "a preset that clients insist on": (
        ["-cn", "exp", *SMALL, "-cd", "{}"],
        ["-cn", "exp", *SMALL, "-cd", "{}"],
        False,
    ),
    "PYTHONPATH at the clients": (["model=mine", *SMALL, "-cd", "{}"], ["--trust", "own_net_of_anns"], True),
    "the server of the same user": (["model=mine", *SMALL, "-cd", "{}"], [], True),
}


@pytest.mark.process
@pytest.mark.parametrize("kind", DEPLOYED)
def test_a_model_of_one_s_own_is_deployed(kind: str, conf: Path, tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    import os

    from deployed import Command, free_port

    mine, theirs = ([part.format(conf) for part in half] for half in DEPLOYED[kind][:2])
    by_path = DEPLOYED[kind][2]
    address, paths = f"127.0.0.1:{free_port()}", [os.environ.get("PYTHONPATH", ""), *[str(conf)] * bool(by_path)]
    server = Command(tmp_path, "server", *mine, f"folder={tmp_path / 'run'}", "--listen", address, "--wait", "100")
    clients = ("client", address, *theirs, "--id", "0,1", "--gpu", "none")
    with server, Command(tmp_path, *clients, PYTHONPATH=os.pathsep.join(filter(None, paths))) as host:
        assert server.wait() == 0, server.said + host.said
        assert host.wait() == 0, host.said
    assert verify(RunFolder(tmp_path / "run"))[0]
    assert "own_net_of_anns.net" in RunFolder(tmp_path / "run").config.read_text()


@pytest.mark.process
def test_another_preset_is_refused(conf: Path, tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from deployed import Command, free_port

    address = f"127.0.0.1:{free_port()}"
    with Command(tmp_path, "server", "-cn", "exp", "-cd", str(conf), "seed=1", "--listen", address) as server:
        server.until("listening on")
        with Command(
            tmp_path, "client", address, "-cn", "exp", "-cd", str(conf), "--id", "0", "--gpu", "none"
        ) as client:
            assert client.wait() == 2, client.said
            assert "client 0 was refused: its config is " in client.said
