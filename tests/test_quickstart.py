"""A third party's Flower app, unchanged: in this process and over our stream. `test_fleet.py` has Flower's own way."""

import re
from pathlib import Path

import pytest

import world
from deployed import Command, certificates, free_port

pytestmark = pytest.mark.process

QUICKSTART = str(world.ROOT / "tests" / "quickstart")
FINAL = re.compile(r"quickstart: after 3 rounds, accuracy (0\.\d+)")


def accuracy(said: str) -> float:
    found = FINAL.findall(said)
    assert len(found) == 1, said
    return float(found[0])


def test_in_process(tmp_path: Path) -> None:
    with Command(tmp_path, "flower-run", QUICKSTART, "--nodes", "3", "--run-config", "num-server-rounds=3") as ran:
        assert ran.wait() == 0, ran.said
        assert accuracy(ran.said) > 0.8


def test_over_mutual_tls(tmp_path: Path) -> None:
    keys, address = str(certificates(tmp_path / "keys")), f"127.0.0.1:{free_port()}"
    server = (
        "server",
        "--app",
        QUICKSTART,
        "--clients",
        "3",
        "--run-config",
        "num-server-rounds=3",
        "--listen",
        address,
        "--keys",
        keys,
    )
    clients = ("client", address, "--app", QUICKSTART, "--keys", keys, "--id", "0,1,2", "--gpu", "none")
    with Command(tmp_path, *server) as served, Command(tmp_path, *clients) as host:
        assert served.wait() == 0, served.said + host.said
        assert host.wait() == 0, host.said
        assert accuracy(served.said) > 0.8
