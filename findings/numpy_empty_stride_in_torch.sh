#!/usr/bin/env bash
# torch.from_numpy of an empty numpy array makes a tensor that has no view of another type.
#
# Versions: torch 2.13.0, numpy 2.4.6.
# Seen: numpy gives an array without elements the stride 0, and from_numpy keeps it. `view(torch.uint8)` then raises
#   "self.stride(-1) must be 1 to view Long as Byte (different element sizes), but got 0". `contiguous` returns the same
#   tensor, because one without elements counts as contiguous, and so does `reshape(-1)`; `clone` keeps the stride.
#   torch.tensor, which copies, has it, too; clone(memory_format=torch.contiguous_format) gives the stride 1.
# Expected: the view that torch.zeros(0, dtype=torch.int64) has, which is empty.
# Matters: code that reads a tensor's bytes by such a view, to hash or send it, fails on the first empty array.

source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6
run <<'PY'
import numpy as np
import torch

made = torch.zeros(0, dtype=torch.int64)
taken = torch.from_numpy(np.zeros(0, dtype=np.int64))
print("torch's own:", made.stride(), made.view(torch.uint8).shape)
assert made.stride() == (1,)
ways = {"": taken, ".contiguous()": taken.contiguous(), ".reshape(-1)": taken.reshape(-1), ".clone()": taken.clone()}
for name, tensor in ways.items():
    try:
        tensor.view(torch.uint8)
        raise SystemExit(f"from_numpy{name} has a view of bytes")
    except RuntimeError as error:
        print(f"from_numpy{name}: strides {tensor.stride()}, {error}")
    assert tensor.stride() == (0,) and tensor.is_contiguous()
assert torch.tensor(np.zeros(0, dtype=np.int64)).stride() == (0,)
copied = taken.clone(memory_format=torch.contiguous_format)
print("clone(memory_format=torch.contiguous_format):", copied.stride(), copied.view(torch.uint8).shape)
assert copied.stride() == (1,)
PY
