"""Peers of a run on one local network, which multicast DNS tells of each other."""

import pytest

from deployed import eventually
from fedshare.transport.mesh.lan import Lan
from optional import extra

extra("zeroconf")
HOST = "127.0.0.1"


def lan(run: bytes, me: int, port: int) -> Lan:
    return Lan(run, me, f"{HOST}:{port}", interfaces=[HOST])


def test_peers_of_one_run_hear_of_each_other_and_of_no_other_run() -> None:
    ours, theirs = b"r" * 32, b"q" * 32
    try:
        first = lan(ours, 0, 1111).__enter__()
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    try:
        with lan(ours, 1, 2222) as second, lan(theirs, 1, 3333) as other:
            eventually(lambda: bool(first.addresses and second.addresses), "each other's addresses")
            assert first.addresses == {f"{HOST}:2222"}
            assert second.addresses == {f"{HOST}:1111"}
            assert other.addresses == set()
    finally:
        first.__exit__(None, None, None)
