#!/usr/bin/env bash
# torchmetrics decides batch by batch whether scores are logits, so an AUROC depends on how they are batched.
#
# Versions: torchmetrics 1.9.0, torch 2.13.0.
# Seen: a batch with any score outside [0, 1] goes through a sigmoid, a batch inside does not. The same eight scores
#   have AUROC 1.0 in one update, and 0.9375 in two.
# Expected: an AUROC depends on the order of the scores alone, and one metric treats all its scores alike.
# Matters: every client is a batch. A client whose logits happen to lie in [0, 1] is put on another scale than the
#   rest, and the pooled AUROC is wrong without a word. Hand probabilities over, never logits.
source "$(dirname "$0")/common.sh"
venv_with torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from torchmetrics.classification import BinaryAUROC

scores = torch.tensor([0.02, 0.10, 0.35, 0.40, -3.0, -0.5, 0.50, 2.0])
labels = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
pooled, split = BinaryAUROC(), BinaryAUROC()
pooled.update(scores, labels)
for client in (slice(0, 4), slice(4, 8)):
    split.update(scores[client], labels[client])
    print("kept as", split.preds[-1].tolist())
print("pooled", pooled.compute().item(), "in two updates", split.compute().item())
assert pooled.compute() == 1.0
assert split.compute() == 0.9375
PY
