#!/usr/bin/env bash
# A Dirichlet sample with a very small alpha is NaN in numpy's RandomState and halfway to uniform in torch.
#
# Versions: numpy 2.4.6, torch 2.13.0.
# Seen: ten classes, 2,000 draws. At alpha = 1e-4 half of RandomState's rows are NaN (no warning), and torch's largest
#   share averages 0.56, though at 0.001 it is 0.99: half its rows are even. numpy's Generator is right: 0.999.
# Expected: the smaller alpha, the nearer to one class a client; or an error.
# Matters: "Dirichlet(alpha)" is how label skew is made. Sweeps towards alpha = 0 end in NaN shares (cast to int: counts
#   of nonsense) or, silently, in half IID clients. Draw from numpy's Generator.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

run <<'PY'
import numpy as np
import torch

classes, draws = 10, 2000
seen = {}
for alpha in (0.1, 1e-3, 1e-4):
    legacy = np.random.RandomState(0).dirichlet([alpha] * classes, draws)
    modern = np.random.default_rng(0).dirichlet([alpha] * classes, draws)
    torch.manual_seed(0)
    torchs = torch.distributions.Dirichlet(torch.full((classes,), alpha, dtype=torch.float64)).sample((draws,))
    bad = float(np.isnan(legacy).any(axis=1).mean())
    seen[alpha] = bad, float(torchs.max(dim=1).values.mean()), float(modern.max(axis=1).mean())
    print(f"alpha {alpha}: RandomState {bad:.1%} NaN; largest share torch {seen[alpha][1]:.3f}, Generator", end=" ")
    print(f"{seen[alpha][2]:.3f}")
assert seen[0.1][0] == 0
assert abs(seen[0.1][1] - seen[0.1][2]) < 0.02
assert seen[1e-4][0] > 0.3
assert seen[1e-4][1] < 0.7
assert seen[1e-4][2] > 0.99
PY
