#!/usr/bin/env bash
# A torchmetrics Jaccard index is computed in float32 also after .set_dtype(torch.float64); an F1 score is not.
#
# Versions: torchmetrics 1.9.0, torch 2.13.0.
# Seen: the intersection over union of 1 of 3 pixels is 0.3333333432674408, as a float32, whatever the metric's dtype.
# Expected: what `.set_dtype` says, as for the accuracy and the F1 score of the same states in float64.
# Matters: who adds up the states of clients exactly and compares with a test in one place, in another library, sees
#   differences of 1e-8 that are of nobody's making. A TorchFunctionMode that turns Tensor.float into Tensor.double
#   around `compute` gives all digits.
source "$(dirname "$0")/common.sh"
venv_with torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

wanted, found = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])  # 1 of both, 3 of either


class Doubles(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0].double() if func is Tensor.float else func(*args, **(kwargs or {}))


def score(kind):
    metric = kind().set_dtype(torch.float64)
    metric.update(found, wanted)
    for state, value in metric.metric_state.items():
        setattr(metric, state, value.double())
    return metric.compute()


jaccard, f1 = score(BinaryJaccardIndex), score(BinaryF1Score)
with Doubles():
    exact = score(BinaryJaccardIndex)
print("Jaccard", jaccard.dtype, jaccard.item(), "with .float() made .double():", exact.item(), "F1", f1.dtype)
assert jaccard.dtype == torch.float32
assert jaccard.item() != 1 / 3
assert exact.item() == 1 / 3
assert f1.dtype == torch.float64
PY
