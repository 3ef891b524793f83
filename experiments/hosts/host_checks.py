"""Checks of `fedshare doctor` on this host: versions, clock, disk, GPUs."""

import argparse
import io
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import UTC, datetime
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedshare.errors import UserError
from fedshare.machine.devices import visible_gpus
from fedshare.machine.files import state_folder
from fedshare.report.units import human_bytes
from fedshare.transport.stream.health import protobuf_backend

OK, WARNING, FAILED = "ok", "warning", "FAILED"
SHOWN = ("fedshare", "torch", "flwr", "grpcio", "protobuf")
CLOCK_SECONDS = 5.0
TORCH_SECONDS = 120.0  # a cold start from a network disk takes a minute
LITTLE = 1 << 30  # bytes free

Finding = tuple[str, str]  # the level, and a line


def versions(options: argparse.Namespace) -> Iterator[Finding]:
    """Compare installed versions with pyproject.toml's requirements, from the package's metadata."""
    wrong = [*_wrong_versions()]
    for line in wrong:
        yield FAILED, f"versions: {line}"
    if (backend := protobuf_backend()) != "upb":
        yield WARNING, f"versions: protobuf runs as {backend}, far slower than upb: unset PROTOCOL_BUFFERS_..."
    if not wrong:
        have = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
        yield OK, f"versions: Python {platform.python_version()}, {have}"


def _wrong_versions() -> Iterator[str]:
    python, wanted = platform.python_version(), metadata.metadata("fedshare")["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        yield f"Python {python}: must be {wanted}"
    for requirement in map(Requirement, metadata.requires("fedshare") or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed: pip install '{requirement}'"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found}: must be {requirement.specifier}"


def clock(options: argparse.Namespace) -> Iterator[Finding]:
    now = f"clock: {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CLOCK_SECONDS
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        done = ""
    if done == "no":
        yield WARNING, f"{now}, not synchronised, and certificates begin and end by it"
    else:
        yield OK, now + (", synchronised" if done == "yes" else "; whether it is synchronised is not known here")


def state(options: argparse.Namespace) -> Iterator[Finding]:
    folder = state_folder(options.state)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        raise UserError(f"{folder}: clients cannot remember there: {there}: {error.strerror}") from None
    yield WARNING if free < LITTLE else OK, f"{folder}: clients can remember there; {human_bytes(free)} free"


def gpus(options: argparse.Namespace) -> Iterator[Finding]:
    with redirect_stderr(io.StringIO()) as said:
        gpus = visible_gpus(os.environ)
    for line in said.getvalue().splitlines():
        yield WARNING, line.removeprefix("warning: ")
    if not gpus:
        yield OK, "gpu: none is visible; clients train on the CPU"
        return
    program = "import torch; c = torch.cuda; print(torch.__version__, c.device_count() if c.is_available() else 0)"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=TORCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"gpu: torch did not load in {TORCH_SECONDS:g} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"gpu: torch cannot be loaded: {last}")
    torch, count = done.stdout.split()[-2:]
    if int(count) != len(gpus):
        raise UserError(
            f"gpu: {', '.join(gpus)} visible, and torch {torch} can use {count}: "
            "is it built for CUDA, and the driver new enough? --gpu none trains on the CPU"
        )
    yield OK, f"gpu: {', '.join(gpus)}; torch {torch} can use {count}"
