"""Twenty seconds of the soak: everything is killed among hostile clients, and the honest ones' run keeps its bits."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from world import ROOT

pytestmark = pytest.mark.process


@pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")
def test_twenty_seconds_among_hostile_clients_in_which_everything_is_killed_costs_no_bit(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "soak"), "--minutes", "0.3", "--honest", "3", "--seed", "17"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        r"kill -9 .*honest \d.*server \d",
        r"hostile acts \w",
        r"refused +[1-9]\d* answers",
        "none was dropped or untested",
        r"digests +equal: [1-9]",
        "taken +0 uploads",
    ):
        assert re.search(part, done.stdout), done.stdout
