#!/usr/bin/env bash
# Whether a class without examples counts in a torchmetrics macro score depends on the metric, on its binning and on a
# single prediction.
#
# Versions: torchmetrics 1.9.0, torch 2.13.0.
# Seen: three classes, the third without an example, everything predicted right. Macro accuracy is 1.0, AUROC 0.667,
#   average precision 1.0 exact and 0.667 with thresholds. One wrong guess of the third class, and macro accuracy falls
#   from 1.0 to 0.5 (0.75 over the classes present).
# Expected: one rule for a class that has no examples.
# Matters: most clients of a label-skewed federation lack classes, so their macro scores are not comparable, and a
#   personalised model looks better or worse by the choice of metric. Say over which classes a macro score goes.
source "$(dirname "$0")/common.sh"
venv_with torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassAveragePrecision

labels = torch.tensor([0, 0, 1, 1])
right = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
wrong = right.clone()
wrong[3] = torch.tensor([0.1, 0.2, 0.7])
seen = {
    "accuracy": MulticlassAccuracy(3)(right, labels).item(),
    "AUROC": MulticlassAUROC(3)(right, labels).item(),
    "average precision": MulticlassAveragePrecision(3)(right, labels).item(),
    "average precision, binned": MulticlassAveragePrecision(3, thresholds=100)(right, labels).item(),
    "accuracy, one wrong": MulticlassAccuracy(3)(wrong, labels).item(),
}
for name, value in seen.items():
    print(f"{name}: {value:.3f}")
assert [round(value, 3) for value in seen.values()] == [1.0, 0.667, 1.0, 0.667, 0.5]
PY
