#!/usr/bin/env bash
# Most torch schedulers created with last_epoch=n do not give the learning rate of step n.
#
# Versions: torch 2.13.0.
# Seen: with a fresh optimizer, last_epoch=3 and the `initial_lr` that torch asks for, of ten schedulers only LambdaLR
#   and CosineAnnealingWarmRestarts set the rate that four steps lead to. Eight stay at the base rate, or (StepLR) one
#   decay below it, with no warning. They compute a rate from the one before it.
# Expected: last_epoch is the index to go on from; the rate there has a closed form, which the classes also hold.
# Matters: clients and workers are made anew each round. "Decay over rounds" by a torch scheduler is then no decay.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from torch.optim import lr_scheduler

schedulers = {
    "LambdaLR": lambda optimizer, n: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step, last_epoch=n),
    "CosineAnnealingWarmRestarts": lambda optimizer, n: lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, 10, last_epoch=n
    ),
    "MultiplicativeLR": lambda optimizer, n: lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.9, last_epoch=n),
    "ExponentialLR": lambda optimizer, n: lr_scheduler.ExponentialLR(optimizer, 0.9, last_epoch=n),
    "StepLR": lambda optimizer, n: lr_scheduler.StepLR(optimizer, 2, 0.5, last_epoch=n),
    "MultiStepLR": lambda optimizer, n: lr_scheduler.MultiStepLR(optimizer, [3, 6], 0.5, last_epoch=n),
    "CosineAnnealingLR": lambda optimizer, n: lr_scheduler.CosineAnnealingLR(optimizer, 10, last_epoch=n),
    "PolynomialLR": lambda optimizer, n: lr_scheduler.PolynomialLR(optimizer, 10, last_epoch=n),
    "LinearLR": lambda optimizer, n: lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 10, last_epoch=n),
    "ConstantLR": lambda optimizer, n: lr_scheduler.ConstantLR(optimizer, 0.1, 10, last_epoch=n),
}


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


right = []
for name, make in schedulers.items():
    stepped = optimizer()
    scheduler = make(stepped, -1)
    for _ in range(4):
        stepped.step()
        scheduler.step()
    anew = optimizer()
    anew.param_groups[0]["initial_lr"] = 1.0
    make(anew, 3)
    want, got = stepped.param_groups[0]["lr"], anew.param_groups[0]["lr"]
    print(f"{name:28} after four steps {want:.4f}, made anew there {got:.4f}")
    if abs(want - got) < 1e-12:
        right.append(name)
assert right == ["LambdaLR", "CosineAnnealingWarmRestarts"], right
PY
