#!/usr/bin/env bash
# torchmetrics' R2Score of float32 targets near 100,000 is noise.
#
# Versions: torchmetrics 1.9.0, torch 2.13.0, scikit-learn 1.9.1.
# Seen: the state is the sum and the sum of squares of the targets, and the variance their difference. For targets near
#   100,000 with a spread of 0.3, R2Score gives 1.0 three times where scikit-learn gives 0.47, 0.46 and 0.57; the same
#   numbers as float64 give scikit-learn's. Near 10,000 it gives 0.0 and, once, 1.009.
# Expected: a small error, not another answer: float32 holds such targets to 0.008.
# Matters: additive sums are just what federated evaluation sends. For regression on prices or times, centre the targets
#   or send the sums in float64.
source "$(dirname "$0")/common.sh"
venv_with torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1

run <<'PY'
import torch
from sklearn.metrics import r2_score
from torchmetrics import R2Score

for level in (10_000, 100_000):
    for seed in range(3):
        noise = torch.randn(100, generator=torch.Generator().manual_seed(seed))
        guesses = torch.linspace(0, 1, 100) + level
        targets = guesses + 0.3 * noise
        truth = r2_score(targets.double().numpy(), guesses.double().numpy())
        single = R2Score()(guesses, targets).item()
        double = R2Score()(guesses.double(), targets.double()).item()
        print(f"near {level}: scikit-learn {truth:.3f}, torchmetrics float32 {single:.3f}, float64 {double:.3f}")
        assert 0.4 < truth < 0.6
        assert abs(double - truth) < 0.01
        assert abs(single - truth) > 0.3
PY
