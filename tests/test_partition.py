"""Peers in network namespaces, and a network that falls into two halves and heals."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from namespaces import lacking

from world import ROOT

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.fixture(scope="module")
def partition() -> ModuleType:
    loader = SourceFileLoader("partition", str(ROOT / "deploy" / "partition"))
    spec = spec_from_loader("partition", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_both_halves_of_a_network_go_on_and_meet_again(
    partition: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Rounds long enough for links to be made anew before the last one.
    config = "strategy=onebyte strategy.probes=256 peers=full data=digits model=logistic client.batch_size=16"
    options = ["--peers", "4", "--rounds", "24", "--folder", str(tmp_path), "--config", config]
    assert partition.main(options) == 0
    said = capsys.readouterr().out
    assert "8 ends of links across the cable are given up\n" in said
    assert re.search(r"^healed +after \d+ s, .*\n.*models: [0-9a-f]{12}$", said, re.M)


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_with_a_relay_the_smaller_half_waits_and_says_so(
    partition: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert partition.main(["--relay", "--peers", "3", "--rounds", "12", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "and peers [2] say that they wait for the relay\n" in said
    assert re.search(r"^healed +after \d+ s, .*\n.*models: [0-9a-f]{12}$", said, re.M)
