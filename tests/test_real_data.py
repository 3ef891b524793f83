"""A round on each real data set with a model made for it. Skipped, with the reason, where its files are not there."""

import os
from pathlib import Path

import pytest
from test_runs import fedshare

from fedshare.data import sources
from fedshare.data.files import present
from fedshare.runs import RunFolder

pytestmark = pytest.mark.long

DATA = {
    "mnist": (sources.MNIST, "partition=shards"),
    "fashion_mnist": (sources.FASHION_MNIST, "partition=shards"),
    "cifar10": (sources.CIFAR10, "model=resnet8"),
    "cifar100": (sources.CIFAR100, "model=vit"),
    "sst2": (sources.SST2, "partition=iid"),
    "sst_trees": (sources.SST_TREES, "partition=quantity"),
    "movie_review": (sources.MOVIE_REVIEW, "client=adam"),
    "shakespeare": (sources.TINY_SHAKESPEARE, "client.optimizer.lr=0.5"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_round_on_real_data(name: str, tmp_path: Path) -> None:
    source, choice = DATA[name]
    root = Path(os.environ.get("FEDSHARE_DATA", "/nonexistent"))
    folders = [root / folder for folder in (source.folder, source.inside) if folder]
    if not any(len(present(source, folder)) == len(source.names) for folder in folders):
        pytest.skip(f"no {source.folder} in FEDSHARE_DATA")
    few = [
        "rounds=1",
        "clients_per_round=1",
        "client.epochs=1",
        "client.batch_size=50",
        "evaluate_every=0",
        "workers=0",
    ]
    assert fedshare("run", f"folder={tmp_path}/run", f"data={name}", choice, *few) == 0
    (row,) = RunFolder(tmp_path / "run").rows()
    assert row["examples"] > 0
    assert 0 < row["train_loss"] < 6
    assert (tmp_path / "run" / "partition.svg").exists()
