"""Hosts with addresses of their own on this machine: network namespaces at two switches, with a cable between these."""

import os
import shutil
import subprocess
import sys
from types import TracebackType
from typing import IO, Any, Self

import forked

_SUBNET = "10.77.0."
_ENTER = """import ctypes, os, sys
space = os.open(f"/run/netns/{sys.argv.pop(1)}", os.O_RDONLY)
if ctypes.CDLL(None, use_errno=True).setns(space, 0x40000000):  # CLONE_NEWNET
    raise OSError(ctypes.get_errno(), "setns")
os.close(space)
from fedshare.experiments.cli import main
main(sys.argv[1:])
"""


def lacking() -> str:
    """Why there can be no such hosts here; empty if there can be."""
    if sys.platform != "linux" or os.geteuid():
        return "network namespaces take Linux and root"
    if not shutil.which("ip"):
        return "there is no `ip` here (iproute2)"
    name = f"fedshare-{os.getpid()}-probe"
    made = _ip("netns", "add", name, check=False)
    if made.returncode:
        return f"this process may make no network namespaces: {made.stderr.strip()}"
    try:
        bridge = _ip("-n", name, "link", "add", "name", "switch", "type", "bridge", check=False)
        return f"this kernel makes no bridges: {bridge.stderr.strip()}" if bridge.returncode else ""
    finally:
        _ip("netns", "del", name)


class Host:
    """A namespace with an address."""

    def __init__(self, space: str, address: str) -> None:
        self.space, self.address = space, address

    def fedshare(self, *arguments: str, log: IO[str] | int) -> forked.Process:
        """Start `fedshare ARGUMENTS` there."""
        return forked.python("-c", _ENTER, self.space, *arguments, stdout=log, stderr=subprocess.STDOUT)


class Network:
    """Two switches; `cut` pulls the cable between them: what is sent to the other half is lost."""

    def __init__(self) -> None:
        self._prefix, self._spaces = f"fedshare-{os.getpid()}", list[str]()

    def __enter__(self) -> Self:
        try:
            for half in (0, 1):
                self._space(f"switch-{half}")
                self._in(f"switch-{half}", "link", "add", "name", "switch", "type", "bridge")
                self._in(f"switch-{half}", "link", "set", "switch", "up")
            far = f"{self._prefix}-switch-1"
            self._in("switch-0", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far)
            for half in (0, 1):
                self._in(f"switch-{half}", "link", "set", "dev", "cable", "master", "switch", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for space in reversed(self._spaces):
            _ip("netns", "del", space, check=False)

    def host(self, name: str, half: int) -> Host:
        """Return a new host at one of the switches."""
        space, number = self._space(name), len(self._spaces)
        port = f"port-{number}"
        self._in(f"switch-{half}", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._in(f"switch-{half}", "link", "set", "dev", port, "master", "switch", "up")
        self._in(name, "addr", "add", f"{_SUBNET}{number}/24", "dev", "eth0")
        self._in(name, "link", "set", "dev", "eth0", "up")
        return Host(space, f"{_SUBNET}{number}")

    def cut(self) -> None:
        self._in("switch-0", "link", "set", "dev", "cable", "down")

    def heal(self) -> None:
        self._in("switch-0", "link", "set", "dev", "cable", "up")

    def _space(self, name: str) -> str:
        space = f"{self._prefix}-{name}"
        _ip("netns", "add", space)
        self._spaces.append(space)
        self._in(name, "link", "set", "lo", "up")
        return space

    def _in(self, name: str, *words: str) -> None:
        _ip("-n", f"{self._prefix}-{name}", *words)


def _ip(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done: Any = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done
