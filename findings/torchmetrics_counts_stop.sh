#!/usr/bin/env bash
# A torchmetrics sum stops growing at 16,777,216, even after .double().
#
# Versions: torchmetrics 1.9.0, torch 2.13.0.
# Seen: sums and weights are float32, whatever dtype comes in. From 2**24 on, adding one example adds nothing: a mean
#   over 2**24 ones stays 1.0 however many zeros follow one by one. `.double()` is a no-op on a metric,
#   `.set_dtype(torch.float64)` works.
# Expected: a count of examples that counts; `.double()` as on any torch module.
# Matters: a server that keeps one metric over rounds and clients counts examples by the million, and a client with
#   few of them no longer weighs anything.
source "$(dirname "$0")/common.sh"
venv_with torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from torchmetrics import MeanMetric, SumMetric

mean = MeanMetric()
mean.update(1.0, weight=2**24)
for _ in range(1000):
    mean.update(0.0, weight=1)
print("weight", mean.weight.item(), "after 1000 more; mean", mean.compute().item())
assert mean.weight == 2**24
assert mean.compute() == 1.0


def one_more(metric):
    metric.update(torch.tensor(2.0**24, dtype=torch.float64))
    metric.update(torch.tensor(1.0, dtype=torch.float64))
    return metric.compute().item()


seen = one_more(SumMetric()), one_more(SumMetric().double()), one_more(SumMetric().set_dtype(torch.float64))
print("2**24 + 1 as is, by .double(), by .set_dtype:", seen)
assert seen == (2**24, 2**24, 2**24 + 1)
PY
