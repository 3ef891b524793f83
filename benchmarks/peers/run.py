"""Samples per second of a FedAvg round in other libraries and in this project, on the same arrays.

    python benchmarks/peers/run.py [PEER ...] [WORKLOAD ...] [--turns N] [--repeat N] [--folder FOLDER]

Each peer is a script beside this one, with its pinned packages at its top, which are installed into an environment of
its own: in a temporary folder, or in `--folder`, where they are kept and used again. `fedshare` stands for
`benchmarks/rounds.py`, which also runs the plain and the flat loop. All run in turns, a process each. The table has
samples per second, as median, minimum and maximum over the rounds of all turns without each process's first, and ratios
to the flat loop in as many processes as there are cores. A peer that cannot be installed or run has a line with the
reason.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

from arrays import WORKLOADS, write

HERE = Path(__file__).parent
OURS = "fedshare"
PEERS = [OURS, "flower", "pfl", "blazefl", "fedjax"]
PYTHONS = [f"python3.{minor}" for minor in range(14, 10, -1)]
INSTALL, PLAY = 3600.0, 1200.0  # seconds allowed


class Failure(Exception):
    """A peer could not be installed or run."""


def call(command: list[str], timeout: float) -> str:
    """Run a command and return what it prints. Raises Failure with its last line if it fails or takes too long."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # Flower's simulation ignores SIGTERM while it waits for Ray
        process.communicate()
        raise Failure(f"not done after {timeout:.0f} s") from None
    if process.returncode:
        lines = (errors or out).strip().splitlines() or ["it printed nothing"]
        raise Failure(f"exit status {process.returncode}: {lines[-1]}")
    return out


def metadata(script: Path) -> dict[str, Any]:
    """Return the block of PEP 723 at the top of a script."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text(), re.M)
    assert block, script
    return tomllib.loads("\n".join(line[2:] for line in block[1].splitlines()))


def interpreter(wanted: str, preferred: list[str]) -> str:
    """Return the first Python here of a version as `wanted` says ('>=3.11,<3.13'): a preferred one, or this one."""
    lowest, *less = (tuple(map(int, part.split("."))) for part in re.findall(r"[\d.]+", wanted))
    for python in [*preferred, sys.executable, *PYTHONS]:
        if shutil.which(python):
            answer = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True)
            found = tuple(map(int, answer.stdout.split()))
            if found >= lowest and all(found < limit for limit in less):
                return python
    raise Failure(f"needs Python {wanted}, which is not here")


def install(peer: str, folder: Path) -> Path:
    """Make a peer's environment, unless it is there, and return its Python."""
    wanted = metadata(HERE / f"on_{peer}.py")
    special = wanted.get("tool", {}).get("peer", {})
    home, pins = folder / peer, folder / peer / "pins.json"
    python = home / "bin" / "python"
    if not pins.exists() or json.loads(pins.read_text()) != wanted:
        shutil.rmtree(home, ignore_errors=True)
        print(f"installing {peer} ...", file=sys.stderr, flush=True)
        call([interpreter(wanted["requires-python"], special.get("preferred", [])), "-m", "venv", str(home)], INSTALL)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        call([*pip, *wanted["dependencies"]], INSTALL)
        if "regardless" in special:
            call([*pip, "--no-deps", "--ignore-requires-python", *special["regardless"]], INSTALL)
        pins.write_text(json.dumps(wanted))
    return python


def command(peer: str, folder: Path) -> list[str]:
    """Return the command that runs a peer, without the workload; its packages are then installed."""
    if peer == OURS:
        return [sys.executable, str(HERE.parent / "rounds.py"), "--json"]
    return [str(install(peer, folder)), str(HERE / f"on_{peer}.py"), str(folder)]


def play(command: list[str], workload: str, repeat: int) -> list[dict[str, Any]]:
    """Run a workload and return the lines that are printed."""
    out = call([*command, workload, "--repeat", str(repeat)], PLAY)
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def table(name: str, rates: dict[str, list[float]]) -> None:
    flat = [median(found) for way, found in rates.items() if way.startswith("flat loop, ")]
    print(f"\n{name:32}   samples/s   smallest    largest" + "   to the flat loop" * bool(flat))
    for way, found in sorted(rates.items(), key=lambda pair: median(pair[1])):
        ratio = f"{median(found) / flat[0]:15.3f}x" if flat else ""
        print(f"  {way:30} {median(found):11,.0f} {min(found):10,.0f} {max(found):10,.0f} {ratio}")


def processor() -> str:
    path = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", path.read_text()) if path.exists() else []
    return models[0] if models else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *PEERS, *WORKLOADS], default=[], metavar="PEER|WORKLOAD")
    parser.add_argument("--turns", type=int, default=2, help="processes of each, one after another's")
    parser.add_argument("--repeat", type=int, default=5, help="rounds in a process, after one that warms up")
    parser.add_argument("--folder", type=Path, help="where environments and arrays are kept")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if peer in options.names] or PEERS
    workloads = [name for name in WORKLOADS if name in options.names] or list(WORKLOADS)
    failures, versions = dict[str, str](), dict[str, str]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        commands: dict[str, list[str]] = {}
        for peer in peers:
            try:
                commands[peer] = command(peer, folder)
            except Failure as failure:
                failures[peer] = str(failure)
        for name in workloads:
            write(folder, name)
            rates: dict[str, list[float]] = {}
            for _ in range(options.turns):
                for peer, begun in commands.items():
                    try:
                        lines = play(begun, name, options.repeat)
                    except Failure as failure:
                        failures[f"{peer}, {name}"] = str(failure)
                        continue
                    for line in lines:
                        rates.setdefault(line["way"], []).extend(line["rates"])
                        versions[peer] = ", ".join(" ".join(pair) for pair in line["versions"].items())
            table(name, rates)
            sys.stdout.flush()
            (folder / f"{name}.npz").unlink()
    print(f"\n{os.cpu_count()} cores, {processor()}")
    for peer, packages in versions.items():
        print(f"{peer:10} {packages}")
    for what, reason in failures.items():
        print(f"not run: {what}: {reason}")


if __name__ == "__main__":
    main()
