#!/usr/bin/env bash
# torchmetrics' merge_state keeps an outdated result, and weights "mean" states by the wrong operand.
#
# Versions: torchmetrics 1.9.0, torch 2.13.0.
# Seen: a metric that was computed once gives that number again after merging another (the cache is kept). A state with
#   dist_reduce_fx="mean" at 1 after nine updates, merged with one at 5 after one update, becomes 4.56. Merged into a
#   metric that was never updated it is minus infinity. MetricCollection has no merge_state.
# Expected: the merged value; 1.4 by updates or 3 by metrics; the other's value.
# Matters: merge_state is the documented way of joining metrics without torch.distributed, which is what a federated
#   server does. Merge only sums and counts, into a metric that was never computed.
source "$(dirname "$0")/common.sh"
venv_with torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from torchmetrics import MeanMetric, Metric, MetricCollection


class Last(Metric):
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("value", torch.tensor(0.0), dist_reduce_fx="mean")

    def update(self, value):
        self.value = torch.tensor(value)

    def compute(self):
        return self.value


def metric(kind, value, updates):
    made = kind()
    for _ in range(updates):
        made.update(value)
    return made


cached = metric(MeanMetric, 1.0, 1)
cached.compute()
cached.merge_state(metric(MeanMetric, 5.0, 1))
fresh = metric(MeanMetric, 1.0, 1)
fresh.merge_state(metric(MeanMetric, 5.0, 1))
print("mean of 1 and 5:", fresh.compute().item(), "and, computed before:", cached.compute().item())
assert (fresh.compute(), cached.compute()) == (3.0, 1.0)

joined = metric(Last, 1.0, 9)
joined.merge_state(metric(Last, 5.0, 1))
empty = Last()
empty.merge_state(metric(Last, 5.0, 1))
print("a mean state:", joined.compute().item(), "into a fresh metric:", empty.compute().item())
assert abs(joined.compute() - (8 * 5 + 1) / 9) < 1e-6
assert empty.compute() == float("-inf")
assert not hasattr(MetricCollection, "merge_state")
PY
