"""The suite's settings: no test fails by the clock, and those that were skipped are written down, to be run again."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import forked

settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

LONGEST = [  # files, by what they took on 2 cores
    *("test_fleet", "test_fleet_http", "test_deployment", "test_soak", "test_disks", "test_contract"),
    *("test_processors", "test_runs", "test_beginnings", "test_cli", "test_backup", "test_own_data", "test_peft_runs"),
    *("test_readme", "test_pretrain", "test_matrix", "test_gate", "test_hostile"),
]
DRAWING = [  # files whose runs draw their pictures; those of other tests are laid out, and not written as SVG
    *("test_absent", "test_cli", "test_compare", "test_decentralised", "test_disks", "test_matrix", "test_real_data"),
    *("test_report", "test_runs"),
]
SKIPPED = pytest.StashKey[set[str]]()


class Recorder:
    """Notes the ids of the tests and files that were skipped."""

    def __init__(self) -> None:
        self.skipped = set[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid)


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves a key or a memory in its user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """What tests write need not survive a power cut, so `fsync` still requires an open file, and returns at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Matplotlib takes a third of the time of a small run to write its pictures: see DRAWING."""
    with pytest.MonkeyPatch.context() as patch:
        if "fedshare" in sys.modules and request.path.stem not in DRAWING:
            empty = "matplotlib.backends.backend_svg.FigureCanvasSVG.print_svg"
            patch.setattr(empty, lambda _, file, **__: file.write(b"<svg/>"))
            patch.setattr(forked, "drawing", False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked_processes() -> Iterator[None]:
    """What tests start is forked: see `forked.py`."""
    forked.install()
    yield
    forked.close()


def pytest_configure(config: pytest.Config) -> None:
    recorder = Recorder()
    config.stash[SKIPPED] = recorder.skipped
    config.pluginmanager.register(recorder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, lest one of them be played last by one process while the others have ended."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    gc.freeze()  # collecting garbage takes a tenth of the time while it visits the libraries and all tests each time


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write .pytest_cache/d/skipped/tests, as arguments for pytest. A worker of xdist leaves that to its parent."""
    cache = getattr(session.config, "cache", None)
    if cache is not None and not hasattr(session.config, "workerinput"):
        tests = sorted(session.config.stash[SKIPPED])
        (cache.mkdir("skipped") / "tests").write_text("".join(f"{test}\n" for test in tests))
