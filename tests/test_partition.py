"""Peers in network namespaces, and a network that falls into two halves and heals."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from namespaces import lacking

from world import ROOT

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_both_halves_of_a_network_go_on_and_meet_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = SourceFileLoader("partition", str(ROOT / "deploy" / "partition"))
    spec = spec_from_loader("partition", loader)
    assert spec
    partition = module_from_spec(spec)
    loader.exec_module(partition)
    config = "strategy=onebyte peers=full data=digits model=logistic client.batch_size=16"
    options = ["--peers", "4", "--rounds", "24", "--folder", str(tmp_path), "--config", config]
    assert partition.main(options) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"8 ends of links across the cable are given up\nhealed +after \d+ s, .*\n.*models: [0-9a-f]{12}$", said
    )
