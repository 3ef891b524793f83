#!/usr/bin/env bash
# Saving the same tensors with the same metadata twice with safetensors gives different bytes.
#
# Versions: safetensors 0.8.0, torch 2.13.0.
# Seen: without metadata (or with one key) a save is the same bytes each time; with four keys, 50 saves in one process
#   give many different headers, the metadata's keys in another order each.
# Expected: equal bytes; the tensors' own entries are sorted.
# Matters: checkpoints and updates are compared, chained and stored by the hash of their bytes. The metadata (round,
#   run, client) breaks that at random. Keep it in one key, or hash names and tensors.
source "$(dirname "$0")/common.sh"
venv_with safetensors==0.8.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from safetensors.torch import save

tensors = {"weight": torch.zeros(3), "bias": torch.zeros(1)}
seen = {}
for metadata in (None, {"round": "1"}, {"round": "1", "run": "a", "client": "2", "rate": "0.1"}):
    seen[len(metadata or {})] = len({save(tensors, metadata=metadata) for _ in range(50)})
    print("metadata", metadata, "gives", seen[len(metadata or {})], "different contents in 50 saves")
assert seen[0] == seen[1] == 1
assert seen[4] > 1
PY
