"""A peer that is asked to leave, and one that comes when the run is over."""

import os
import signal
from typing import Any

import pytest

from fedshare.errors import RunHalted
from fedshare.experiments.hosts.leaving import Leaving


class Network:
    """A network whose rounds begin as a test says."""

    memories = exchange = None
    me, start = 3, 5

    def __init__(self, begin: Any = list) -> None:
        self.client_ids = begin


def terminate() -> list[int]:
    os.kill(os.getpid(), signal.SIGTERM)
    return [3]


def test_a_peer_that_waits_for_others_leaves_at_once() -> None:
    network = Leaving(Network(terminate))
    with network.leaving(), pytest.raises(RunHalted, match="peer 3 leaves"):
        network.client_ids()
    assert network.left


def test_a_peer_finishes_the_round_in_which_it_is_asked_to_leave() -> None:
    network = Leaving(Network())
    with network.leaving():
        network.client_ids()
        terminate()
        assert not network.left
        with pytest.raises(RunHalted, match="peer 3 leaves"):
            network.client_ids()
    assert network.left


def test_a_second_signal_ends_it_within_the_round() -> None:
    network = Leaving(Network())
    with network.leaving():
        network.client_ids()
        terminate()
        with pytest.raises(KeyboardInterrupt):
            terminate()


def test_a_peer_that_comes_when_the_run_is_over_does_not_take_it_for_done() -> None:
    network = Leaving(Network(), over=lambda: True)
    with pytest.raises(RunHalted, match="the others have finished the run: peer 3 has it up to round 5"):
        network.client_ids()
    assert not network.left
