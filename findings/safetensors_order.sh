#!/usr/bin/env bash
# The same safetensors content has three orders of tensors, and `load` returns a different order at each call.
#
# Versions: safetensors 0.8.0, torch 2.13.0.
# Seen: saved z (float64), a (int8), b (float32), c (float64). load_file gives c, z, b, a (by width, then by name),
#   safe_open().keys() a, b, c, z; load of the same bytes gives a random order, new at each call in one process.
# Expected: the order of the dict, as torch.save and numpy's npz keep it; at least one order.
# Matters: flattening "all tensors in order" at one end and unflattening at the other puts numbers into the wrong
#   tensors, with no error where sizes add up, and not in every test. Go by name, or sort at both ends.
source "$(dirname "$0")/common.sh"
venv_with safetensors==0.8.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

kinds = {"z": torch.float64, "a": torch.int8, "b": torch.float32, "c": torch.float64}
save_file({name: torch.zeros(1, dtype=kind) for name, kind in kinds.items()}, "order")
with safe_open("order", "pt") as opened, open("order", "rb") as raw:
    keys, content = "".join(opened.keys()), raw.read()
by_file = "".join(load_file("order"))
by_bytes = {"".join(load(content)) for _ in range(100)}
print("saved zabc; load_file", by_file, "keys", keys, "load, 100 times:", sorted(by_bytes))
assert by_file == "czba"
assert keys == "abcz"
assert len(by_bytes) > 1
PY
