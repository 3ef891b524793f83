"""Run and node configs of Flower apps: what is taken, and the one line for what is not."""

import json
from pathlib import Path

import pytest
from click import ClickException
from flwr.common.config import parse_config_args

import world
from deployed import flower_app
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.transport.flower.config import node_config, read_config, run_config
from fedshare.transport.flower.load import App

DEFAULT = {"rounds": 3, "lr": 0.1, "name": "a", "deep.one": True}
ALLOWED = "bool, int, float, str, and tables of those"

TELLING = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
import json
server, client = ServerApp(), ClientApp()

@client.train()
def train(message, context):
    return Message(RecordDict({"node": ConfigRecord(dict(context.node_config))}), reply_to=message)

@server.main()
def main(grid, context):
    replies = grid.send_and_receive([Message(RecordDict(), node, "train") for node in grid.get_node_ids()])
    print(json.dumps([dict(context.run_config), *[dict(reply.content["node"]) for reply in replies]]))
"""


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    """The run config and each node's config, as an app saw them."""
    with pytest.raises(SystemExit) as ended:
        main(["flower-run", *arguments])
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    found: list[dict[str, object]] = json.loads(said.out.splitlines()[-1])
    return found


def test_what_pairs_mean() -> None:
    pairs = 'a=1 b-c=0.5 d.e=true f="x y" g=\'=1\' h = -2 i=\'a "b"\' j={k=1,l.m="z"} n=1e3 o=0x1F p=\'\' q="#"'
    assert read_config([pairs], "--run-config") == {
        "a": 1,
        "b-c": 0.5,
        "d.e": True,
        "f": "x y",
        "g": "=1",
        "h": -2,
        "i": 'a "b"',
        "j.k": 1,
        "j.l.m": "z",
        "n": 1000.0,
        "o": 31,
        "p": "",
        "q": "#",
    }
    assert read_config([], "--run-config") == read_config([""], "--run-config") == {}
    assert read_config(["a=1\nb=2", "a=3 c.d=4", "c.e=5"], "--run-config") == {"a": 3, "b": 2, "c.d": 4, "c.e": 5}


@pytest.mark.parametrize(
    "text",
    [
        'a=1 b-c=0.5 d.e=true f="x y" g=\'=1\' i=\'a "b"\' j={k=1,l.m="z"} n=1e3 o=0x1F p=\'\' q="#"',
        "a=inf b=-0 c=1_000 d=+1.5",
        "x.y.z=1 x.y.w=2 x.v='3'",
        "",
    ],
)
def test_pairs_mean_what_they_mean_to_flower(text: str) -> None:
    assert read_config([text], "--run-config") == parse_config_args([text])


@pytest.mark.parametrize("text", ["a=[1]", "a=x", "a=None", "a=True", "a=2026-11-01", "a=1 a=2", "a=1,b=2"])
def test_what_flower_refuses_is_refused(text: str) -> None:
    with pytest.raises((ValueError, ClickException)):
        parse_config_args([text])
    with pytest.raises(UserError, match=r"--run-config a\b"):
        read_config([text], "--run-config")


def test_a_file_is_the_same_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rc.toml").write_text("a = 2\n\n[d]\ne = 'x'\n[d.f]\ng = 1.5\n")
    assert read_config([str(tmp_path / "rc.toml")], "--run-config") == {"a": 2, "d.e": "x", "d.f.g": 1.5}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_config(["~/rc.toml"], "--run-config")["a"] == 2


def test_overrides_may_be_of_another_type_as_in_flower() -> None:
    given = run_config(['rounds="three" lr=1', "name=0.5 deep.one=0"], DEFAULT)
    assert given == {"rounds": "three", "lr": 1, "name": 0.5, "deep.one": 0}
    assert type(given["lr"]) is int
    assert run_config([], DEFAULT) == DEFAULT
    assert run_config([], DEFAULT) is not DEFAULT


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["rounds"], "--run-config rounds: is not KEY=VALUE"),
        (["rounds=3 and more"], "--run-config and more: is not KEY=VALUE"),
        (["rounds="], "--run-config rounds=: is not KEY=VALUE"),
        (["#rounds=3"], "--run-config #rounds=3: is not KEY=VALUE"),
        (['name="x y'], "--run-config y: is not KEY=VALUE"),
        (["name=x"], f'--run-config name=x: is no value of TOML; allowed: {ALLOWED}; str: name="..."'),
        (["rounds=None"], f'--run-config rounds=None: is no value of TOML; allowed: {ALLOWED}; str: rounds="..."'),
        (["deep.one=True"], "--run-config deep.one=True: is no value of TOML; "),
        (["rounds=1,lr=2"], "--run-config rounds=1,lr=2: is no value of TOML; "),
        (["rounds=[1,2]"], f"--run-config rounds: is a list; allowed: {ALLOWED}"),
        (["lr=1 deep.one=[]"], f"--run-config deep.one: is a list; allowed: {ALLOWED}"),
        (["name=2026-11-01"], f"--run-config name: is a date; allowed: {ALLOWED}"),
        (["name=2026-11-01T10:00:00"], "--run-config name: is a datetime; "),
        (["name=10:00:00"], "--run-config name: is a time; "),
        (["rounds=9223372036854775808"], "--run-config rounds: is an int of more than 64 bits"),
        (["rounds=1 rounds=2"], "--run-config rounds: is given twice"),
        (["round=3"], "--run-config round: no such key in the app's config; allowed: deep.one, lr, name, rounds"),
        (["deep.two=3"], "--run-config deep.two: no such key in the app's config; "),
        (["deep={one=true,two=1}"], "--run-config deep.two: no such key in the app's config; "),
        (["nowhere.toml"], "--run-config nowhere.toml: no such file"),
        (["a.toml", "rounds=1"], "--run-config a.toml: one TOML file, or pairs, not both"),
        (["a.toml", "b.toml"], "--run-config a.toml: one TOML file, or pairs, not both"),
    ],
)
def test_what_is_wrong_in_pairs(texts: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        run_config(texts, DEFAULT)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rounds = [3]", f"rounds: is a list; allowed: {ALLOWED}"),
        ("[deep]\none = 2026-11-01", f"deep.one: is a date; allowed: {ALLOWED}"),
        ("[[deep]]\none = 1", f"deep: is a list; allowed: {ALLOWED}"),
        ("rounds = ", "Invalid value"),
        ("rounds = 1\nrounds = 2", "Cannot overwrite a value"),
        ("[other]\nrounds = 2", "no such key in the app's config"),
    ],
)
def test_what_is_wrong_in_a_file(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "rc.toml").write_text(text)
    with pytest.raises(UserError) as error:
        run_config([str(tmp_path / "rc.toml")], DEFAULT)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("rounds = [1]", f"[tool.flwr.app.config] rounds: is a list; allowed: {ALLOWED}"),
        ("[tool.flwr.app.config.deep]\nday = 2026-11-01", "[tool.flwr.app.config] deep.day: is a date; "),
        ("deep = {one = {two = []}}", "[tool.flwr.app.config] deep.one.two: is a list; "),
    ],
)
def test_what_is_wrong_in_an_apps_own_config(config: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        App.at(flower_app(tmp_path, TELLING, config))
    assert str(error.value).startswith(f"{tmp_path}/pyproject.toml: {line}")


def test_a_config_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.flwr.app]\nconfig = 3\ncomponents = {serverapp = 'a:b', clientapp = 'a:b'}\n"
    )
    with pytest.raises(UserError, match=r"\[tool.flwr.app.config\]: is a int, not a table"):
        App.at(tmp_path)


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["partition-id=3"], "--node-config partition-id: each node is told its own"),
        (["a=1", "num-partitions=5"], "--node-config num-partitions: each node is told its own"),
        (["path=[1]"], f"--node-config path: is a list; allowed: {ALLOWED}"),
        (["path=/data"], f"--node-config path=/data: is no value of TOML; allowed: {ALLOWED}"),
        (["path"], "--node-config path: is not KEY=VALUE"),
    ],
)
def test_what_is_wrong_in_a_node_config(texts: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        node_config(texts)
    assert str(error.value).startswith(line)


def test_an_app_sees_both_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = str(flower_app(tmp_path, TELLING, 'rounds = 3\nname = "a"\n[tool.flwr.app.config.deep]\none = true'))
    pairs = ("-c", 'rounds=4 name="b c"', "--run-config", "deep.one=false")
    node = ("--node-config", 'path="/a b" deep.x=1', "--node-config", "lr=0.5")
    own = {"path": "/a b", "deep.x": 1, "lr": 0.5, "num-partitions": 2}
    assert told(capsys, app, "--nodes", "2", *pairs, *node) == [
        {"rounds": 4, "name": "b c", "deep.one": False},
        {**own, "partition-id": 0},
        {**own, "partition-id": 1},
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["flower-run", "APP", "--run-config", "rounds=[1]"],
        ["flower-run", "APP", "--node-config", "rounds=[1]"],
        ["server", "--app", "APP", "--clients", "1", "--run-config", "rounds=[1]"],
    ],
)
def test_every_command_says_it_in_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = flower_app(tmp_path, TELLING, "rounds = 3")
    with pytest.raises(SystemExit) as ended:
        main([str(app) if word == "APP" else word for word in arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"fedshare: {arguments[-2]} rounds: is a list; allowed: {ALLOWED}\n"


def test_a_run_config_without_an_app_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["server", "data=digits", "--run-config", "rounds=3"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("fedshare: --run-config: is for --app; ")


def test_our_own_app_has_only_its_own_keys() -> None:
    app = App.at(world.ROOT)
    assert run_config(['folder="x"'], app.config) == app.config | {"folder": "x"}
    with pytest.raises(UserError, match="--run-config rounds: no such key in the app's config; allowed: clients, conf"):
        run_config(["rounds=3"], app.config)
