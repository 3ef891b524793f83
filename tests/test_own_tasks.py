"""A researcher's own tasks under all kinds of strategies: a run reports what its pooled predictions amount to."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor
from torch.nn import functional as F

from deployed import simulated
from fedshare.runs import RunFolder
from fedshare.tasks import Task
from fedshare.tensors import Tensors

pytestmark = pytest.mark.long

MINE = Path(__file__).parent / "mylab"
STRATEGIES = ["fedavg", "fedcac", "rffl", "onebyte", "ditto", "median", "krum"]


def regression(o: Tensor, y: Tensor) -> dict[str, float]:
    o = o[:, 0]
    mse = sklearn.mean_squared_error(y, o)
    return {"mse": mse, "mae": sklearn.mean_absolute_error(y, o), "r2": sklearn.r2_score(y, o), "loss": mse}


def auroc(p: np.ndarray, y: np.ndarray) -> float:
    """The area under the curve through 200 thresholds."""
    above = p[None] >= np.linspace(0, 1, 200)[:, None]
    true, false = above[:, y == 1].mean(1), above[:, y == 0].mean(1)
    return float(-np.trapezoid(true, false))


def multilabel(o: Tensor, y: Tensor) -> dict[str, float]:
    there = o.sigmoid() > 0.5
    return {
        "f1": sklearn.f1_score(y, there, average="macro", zero_division=0),
        "auroc": float(np.mean([auroc(o[:, label].sigmoid().numpy(), y[:, label].numpy()) for label in range(3)])),
        "accuracy": float((there == y).double().mean()),
        "loss": float(F.binary_cross_entropy_with_logits(o, y.double())),
    }


def segmentation(o: Tensor, y: Tensor) -> dict[str, float]:
    there = y != 255
    wanted, found = y[there], o.argmax(1)[there]
    return {
        "iou": sklearn.jaccard_score(wanted, found, average="macro", zero_division=0),
        "accuracy": sklearn.accuracy_score(wanted, found),
        "loss": float(F.cross_entropy(o, y, ignore_index=255)),
    }


def text(o: Tensor, y: Tensor) -> dict[str, float]:
    charge = 0.1 * o.softmax(1).square().sum(1).mean()
    return {"accuracy": sklearn.accuracy_score(y, o.argmax(1)), "loss": float(F.cross_entropy(o, y) + charge)}


TASKS: dict[str, tuple[list[str], Callable[[Tensor, Tensor], dict[str, float]]]] = {
    "regression": (["task=regression", "data=patients", "model=mlp", "partition=iid"], regression),
    "multilabel": (["task=multilabel", "data=scenes", "model=mlp", "partition=iid"], multilabel),
    "segmentation": (
        ["task=segmentation", "data=fields", "model=pixels", "partition=iid", "task.auxiliary=0.3"],
        segmentation,
    ),
    "text": (["task=cautious", "data=reviews", "model=reader", "partition=dirichlet"], text),
}


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The outputs and targets of every batch that is tested, in turn."""
    found: list[tuple[Tensor, Tensor]] = []
    sums = Task.sums

    def noted(self: Task, outputs: Tensor, targets: Tensor) -> Tensors:
        found.append((outputs.detach().clone(), targets))
        return sums(self, outputs, targets)

    monkeypatch.setattr(Task, "sums", noted)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield found
    sys.modules.pop("mylab", None)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", TASKS)
def test_a_run_reports_what_its_pooled_predictions_amount_to(
    task: str, strategy: str, tested: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    overrides, central = TASKS[task]
    given = ["rounds=2", "client.optimizer.lr=0.01", f"strategy={strategy}", "--config-dir", str(MINE)]
    given += ["strategy.rule.f=0"] * (strategy == "krum")  # of four clients, it withstands nobody
    folder = simulated(tmp_path / "run", *overrides, *given)
    rows: list[dict[str, Any]] = RunFolder(folder).rows()
    assert [row["round"] for row in rows] == [1, 2]
    assert all(not row["dropped"] for row in rows)
    outputs, targets = (torch.cat(part) for part in zip(*tested[-4:], strict=True))  # one batch a client)
    wanted = central(outputs.double(), targets.long() if task != "regression" else targets.double())
    assert {name: rows[-1][name] for name in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-9)
