#!/usr/bin/env bash
# Which of equal values torch.topk keeps depends on n and k: the first, the last, or some from the middle.
#
# Versions: torch 2.13.0 (CPU).
# Seen: among equal values the top 1 of 4 is index 2, of 10 index 8, of 100 index 0; the top 2 of 100 are 66 and 67; the
#   top 100 of 1,000 begin at 626.
# Expected: some order, but one order: the first, as a stable sort gives.
# Matters: gradients of ReLU networks and quantised updates are full of ties. Sparsified uploads then favour some
#   coordinates by the tensor's length, and two implementations of one compressor disagree. Sort stably.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch

seen = {}
for n, k in ((4, 1), (10, 1), (100, 1), (100, 2), (1000, 1), (1000, 100)):
    values = torch.ones(n)
    kept = sorted(values.topk(k).indices.tolist())
    stable = sorted(values.sort(descending=True, stable=True).indices[:k].tolist())
    seen[n, k] = kept[0] / n
    print(f"top {k} of {n} equal values: from index {kept[0]} to {kept[-1]}; stable sort: {stable[0]} to {stable[-1]}")
    assert stable == list(range(k))
assert seen[100, 1] == 0
assert seen[10, 1] > 0.5
assert 0.1 < seen[100, 2] < 0.9
assert 0.1 < seen[1000, 100] < 0.85
PY
