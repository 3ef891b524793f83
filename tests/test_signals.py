"""An orderly end on SIGTERM, wherever it arrives."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from fedshare.experiments.signals import terminable
from world import PATIENCE


class Grave:
    """Asks for the end in a destructor, where Python discards exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # the handler runs here


def wait() -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(0.01)


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    wait()


def bury(said: list[str]) -> None:
    Grave()
    said.append("lost")
    wait()


def clean_up(said: list[str]) -> None:
    try:
        ask()
    finally:
        try:
            raise OSError
        except OSError:
            signal.raise_signal(signal.SIGALRM)
        said.append("an alarm while another error is handled")
        signal.raise_signal(signal.SIGTERM)
        said.append("a second SIGTERM")


def interrupted(work: Callable[[], None]) -> None:
    with terminable():
        work()


def test_sigterm_ends_a_wait() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(ask)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sigterm_in_a_destructor_is_not_lost() -> None:
    said = list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: bury(said))
    assert said == ["lost"]


def test_what_an_interrupted_run_still_does_is_not_interrupted() -> None:
    said = list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: clean_up(said))
    assert len(said) == 2


def test_the_handlers_are_those_of_before_again() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    with terminable():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
