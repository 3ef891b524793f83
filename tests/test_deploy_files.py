"""What lies in deploy/: units that systemd takes, and commands that our parsers, and Flower's programs, take."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import world
from fedshare.errors import SYSTEM, UserError
from fedshare.experiments.config import compose
from fedshare.experiments.config.application import hydra
from fedshare.experiments.hosts.deploy_options import parser
from fedshare.experiments.hosts.gate import check
from fedshare.transport.flower.private import why_no_grpc_fleet

DEPLOY = world.ROOT / "deploy"
UNITS = sorted(path.name for path in (DEPLOY / "systemd").iterdir())
OURS = [name for name in UNITS if name.startswith("fedshare")]
PROGRAMS = Path(sys.executable).parent
# systemd 254 brought these; an older one says so, and goes on.
NEWER = re.compile("Unknown key( name)? '(RestartSteps|RestartMaxDelaySec)' in section")


def settings(name: str) -> list[tuple[str, str]]:
    """The KEY=VALUE lines of a unit, for instance 3."""
    text = (DEPLOY / "systemd" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _, value in (line.replace("%i", "3").partition("=") for line in lines)]


def started(name: str, **environment: str) -> list[str]:
    """What a unit starts, as systemd reads its variables: ${X} is a word or a part of one, $X any number of words."""
    variables = {"CREDENTIALS_DIRECTORY": "/run/credentials"}
    for key, value in settings(name):
        if key == "Environment":
            variables |= dict(assignment.split("=", 1) for assignment in shlex.split(value))
    variables |= environment
    words: list[str] = []
    for word in shlex.split(dict(settings(name))["ExecStart"]):
        if lone := re.fullmatch(r"\$(\w+)", word):
            words += shlex.split(variables[lone[1]])
        else:
            words.append(
                re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], word)
                .replace("%S", "/var/lib")
                .replace("%t", "/run")
            )
    return words


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    named = []
    for name in UNITS:
        unit = (DEPLOY / "systemd" / name).read_text().replace("/opt/fedshare/bin", str(PROGRAMS))
        named.append(tmp_path / name.replace("@", "@3"))
        named[-1].write_text(unit)
    environment = os.environ | {"SYSTEMD_LOG_LEVEL": "warning"}
    command = ["systemd-analyze", "verify", "--man=no", *map(str, named)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=world.PATIENCE)
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "fedshare" in line]
    assert [line for line in ours if not NEWER.search(line)] == []
    assert not done.returncode, done.stderr


def test_the_server_unit_goes_on_with_its_run() -> None:
    given = {"FEDSHARE_CONFIG": "strategy=local data=mnist rounds=50", "FEDSHARE_OPTIONS": "--clients 3"}
    program, command, *arguments = started("fedshare-server.service", **given)
    options = parser(command).parse_intermixed_args(arguments)
    assert (program, command) == ("/opt/fedshare/bin/fedshare", "server")
    assert (options.listen, options.keys, options.clients) == ("0.0.0.0:9443", "/run/credentials", 3)
    assert options.resume == "/var/lib/fedshare-server/run"
    assert options.overrides == ["strategy=local", "data=mnist", "rounds=50"]
    parser(command).parse_intermixed_args(started("fedshare-server.service")[2:])


def test_the_client_unit_is_one_client_that_stays() -> None:
    given = {"FEDSHARE_SERVER": "server.example.org:9443", "FEDSHARE_OPTIONS": "--gpu 1"}
    _, command, *arguments = started("fedshare-client@.service", **given)
    options = parser(command).parse_intermixed_args(arguments)
    assert (command, options.server, options.id, options.gpu) == ("client", "server.example.org:9443", "3", "1")
    assert (options.keys, options.state) == ("/run/credentials", "/var/lib/fedshare-client-3")
    assert options.stay
    assert options.overrides == []


def test_the_peer_unit_goes_on_with_its_run() -> None:
    config = "strategy=onebyte peers=ring partition.clients=4 'addresses=[a.example.org:9444,b.example.org:9444]'"
    given = {"FEDSHARE_CONFIG": config, "FEDSHARE_OPTIONS": "--grace 60"}
    _, command, *arguments = started("fedshare-peer@.service", **given)
    options = parser(command).parse_intermixed_args(arguments)
    assert (command, options.id, options.listen, options.grace) == ("peer", 3, "0.0.0.0:9444", 60)
    assert options.keys == "/run/credentials"
    assert compose.folder(options.overrides, options.config_name) == "/var/lib/fedshare-peer-3/run"
    assert compose.resolved(options.overrides).addresses == ["a.example.org:9444", "b.example.org:9444"]


def test_compose_starts_peers_that_know_each_other() -> None:
    composed = yaml.safe_load((DEPLOY / "peers.yaml").read_text())
    assert composed["services"].keys() == {f"peer-{peer}" for peer in range(4)}
    assert composed["volumes"].keys() == composed["services"].keys() | {"data"}
    for peer, service in enumerate(composed["services"].values()):
        program, command, *arguments = [*service["entrypoint"], *shlex.split(service["command"])]
        options = parser(command).parse_intermixed_args(arguments)
        assert (program, command, options.id) == ("fedshare", "peer", peer)
        config = compose.resolved(options.overrides)
        assert config.partition.clients == 4
        assert config.addresses == [f"peer-{other}:9444" for other in range(4)]
        mounted = dict(volume.rsplit(":", 2)[:2] for volume in service["volumes"] if volume.endswith(":ro"))
        assert mounted[f"./keys/client-{peer}"] == options.keys
        folder = compose.folder(options.overrides, options.config_name)
        assert folder
        assert f"peer-{peer}:{Path(folder).parent}" in service["volumes"]
        assert service["restart"] == "on-failure"


def test_the_commands_of_the_page_on_several_hosts_are_taken(tmp_path: Path) -> None:
    page = (world.ROOT / "docs" / "multihost.md").read_text()
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    (tmp_path / "four.yaml").write_text(config)
    blocks = "".join(re.findall(r"```bash\n(.*?)```", page, re.S)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith("fedshare ")]
    found = [(command, parser(command).parse_intermixed_args(rest)) for _, command, *rest in lines if command != "keys"]
    assert {command for command, _ in found} == {"peer", "relay", "doctor", "peers"}
    for options in (options for command, options in found if command in ("peer", "doctor")):
        taken = compose.resolved(options.overrides, options.config_name, hydra(str(tmp_path)))
        assert taken.partition.clients == 4
        assert (taken.addresses is None) == ("addresses=null" in options.overrides)


class _Compose(yaml.SafeLoader):
    """Takes Compose's own tags."""


_Compose.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def test_compose_starts_peers_at_a_relay() -> None:
    composed = yaml.load((DEPLOY / "peers-by-relay.yaml").read_text(), _Compose)  # a SafeLoader
    relay, *peers = composed["services"].values()
    assert composed["volumes"].keys() == composed["services"].keys() | {"data"}
    program, command, *arguments = [*relay["entrypoint"], *shlex.split(relay["command"])]
    given = parser(command).parse_intermixed_args(arguments)
    assert (program, command, given.listen, given.peers, given.min_peers) == ("fedshare", "relay", "0.0.0.0:9444", 4, 3)
    mounted = dict(volume.split(":")[1::-1] for volume in relay["volumes"])
    assert mounted[given.keys] == "./keys/server"
    assert mounted[str(Path(given.log).parent)] == "relay"
    whole = yaml.safe_load((DEPLOY / "peers.yaml").read_text())["services"]
    for peer, service in enumerate(peers):
        assert service["extends"] == {"file": "peers.yaml", "service": f"peer-{peer}"}
        program, command, *arguments = [*service["entrypoint"], *shlex.split(whole[f"peer-{peer}"]["command"])]
        options = parser(command).parse_intermixed_args(arguments)
        assert (program, command, options.id, options.relay) == ("fedshare", "peer", peer, "relay:9444")
        assert compose.resolved(options.overrides).partition.clients == 4


def test_the_units_of_runs_meet_that_of_their_gate() -> None:
    _, command, *arguments = started("fedshare-gate.service", FEDSHARE_OPTIONS="--callers 128")
    gate = parser(command).parse_intermixed_args(arguments)
    assert (command, gate.listen, gate.keys, gate.callers) == ("gate", "0.0.0.0:9443", "/run/credentials", 128)
    _, command, *arguments = started("fedshare-run@.service", FEDSHARE_CONFIG="data=mnist rounds=50")
    run = parser(command).parse_intermixed_args(arguments)
    assert (command, run.name, run.resume) == ("server", "3", "/var/lib/fedshare-run-3/run")
    assert run.overrides == ["data=mnist", "rounds=50"]
    assert run.gate == gate.socket == "/run/fedshare/runs"
    check(run)
    units = [dict(settings(name)) for name in ("fedshare-gate.service", "fedshare-run@.service")]
    for key in ("User", "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"):
        assert units[0][key] == units[1][key]


@pytest.mark.parametrize("name", OURS)
def test_what_is_started_again(name: str) -> None:
    found = dict(settings(name))
    assert found["Restart"] == "on-failure"
    assert found["RestartPreventExitStatus"] == str(UserError.exit_code)  # bad input stays bad,
    assert str(SYSTEM) not in found["RestartPreventExitStatus"]  # and what the system did not do, it may do
    assert found["SuccessExitStatus"] == "130"  # SIGTERM is not a failure
    assert "KillSignal" not in found  # SIGTERM it is


@pytest.mark.parametrize("name", OURS)
def test_credentials_are_what_an_identity_is_made_of(name: str) -> None:
    found = {value for key, value in settings(name) if key == "LoadCredential"}
    if "run" in name:
        assert not found  # the gate has them
        return
    role = "client" if "client" in name or "peer" in name else "server"
    place = "client-3" if role == "client" else "server"
    files = {"ca.crt", f"{role}.crt", f"{role}.key"} | ({"signing.key"} if "peer" in name or "relay" in name else set())
    assert found == {f"{file}:/etc/fedshare/keys/{place}/{file}" for file in files}


@pytest.mark.process
@pytest.mark.skipif(bool(why_no_grpc_fleet()), reason=why_no_grpc_fleet())
@pytest.mark.parametrize("name", sorted(set(UNITS) - set(OURS)))
def test_flower_knows_the_flags_of_its_units(name: str) -> None:
    program, *arguments = started(name)
    flags = {word for word in arguments if word.startswith("--")}
    command = [str(PROGRAMS / Path(program).name), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=world.PATIENCE, check=True).stdout
    assert flags <= set(re.findall(r"--[a-z-]+", shown))


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    text = (DEPLOY / "compose.yaml").read_text()
    composed = yaml.safe_load(text)
    assert composed["volumes"].keys() == {"server", "client-0", "client-1", "data"}
    services: dict[str, dict[str, Any]] = composed["services"]
    return services


def test_compose_starts_a_server_and_its_two_clients(services: dict[str, dict[str, Any]]) -> None:
    words = {name: shlex.split(service["command"]) for name, service in services.items()}
    options = {name: parser(line[0]).parse_intermixed_args(line[1:]) for name, line in words.items()}
    assert {name: line[0] for name, line in words.items()} == {
        "server": "server",
        "client-0": "client",
        "client-1": "client",
    }
    assert compose.resolved(options["server"].overrides).partition.clients == 2
    assert options["server"].listen == "0.0.0.0:9443"
    assert options["server"].resume
    assert [options[f"client-{id}"].id for id in (0, 1)] == ["0", "1"]
    assert {options[f"client-{id}"].server for id in (0, 1)} == {"server:9443"}
    for name, service in services.items():
        mounted = dict(volume.rsplit(":", 2)[:2] for volume in service["volumes"] if volume.endswith(":ro"))
        assert mounted[f"./keys/{name}"] == options[name].keys
        assert service["restart"] == "on-failure"


def test_compose_asks_the_doctor_for_health(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        kind, program, command, *arguments = service["healthcheck"]["test"]
        options = parser(command).parse_intermixed_args(arguments)
        assert (kind, program, command) == ("CMD", "fedshare", "doctor")
        assert options.server == "server:9443"
        assert any(f":{options.keys}:ro" in volume for volume in service["volumes"])


def test_the_gpu_that_compose_shows_is_valid_once_it_is_no_comment() -> None:
    text = re.sub(r"^    # (deploy:|  .*)$", r"    \1", (DEPLOY / "compose.yaml").read_text(), flags=re.M)
    (device,) = yaml.safe_load(text)["services"]["client-0"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}


def test_the_image_is_built_from_what_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in shlex.split(line)[1:-1]]
    assert copied
    assert [name for name in copied if not (world.ROOT / name).exists()] == []


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_netns_is_a_script_that_says_what_it_lacks(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "netns")], check=True, timeout=world.PATIENCE)
    environment = os.environ | {"FEDSHARE": str(tmp_path / "nothing")}
    done = subprocess.run(
        [str(DEPLOY / "netns")], env=environment, capture_output=True, text=True, timeout=world.PATIENCE
    )
    assert done.returncode == 2
    assert re.fullmatch(r"deploy/netns: (needs Linux and root|\S+: not found)\n", done.stderr)
