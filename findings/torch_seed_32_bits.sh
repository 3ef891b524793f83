#!/usr/bin/env bash
# torch's CPU generator accepts a 64-bit seed but uses only its low 32 bits.
#
# Versions: torch 2.13.0.
# Seen: seeds 7, 7 + 2**32 and 7 + 5 * 2**32 give one stream; initial_seed() still reports the 64-bit numbers.
# Expected: other seeds, other streams, or an error for a seed out of range.
# Matters: a 64-bit hash of (seed, round, client) as a seed has 32 bits of it: with 77,000 keys two clients share their
#   "own" noise more likely than not. Masks, dropout and perturbations from shared seeds coincide.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch

generators = [torch.Generator().manual_seed(7 + high * 2**32) for high in (0, 1, 5)]
print("seeds", [generator.initial_seed() for generator in generators])
draws = [torch.rand(4, generator=generator).tolist() for generator in generators]
print(draws[0], "three times" if draws[0] == draws[1] == draws[2] else draws)
assert draws[0] == draws[1] == draws[2]
assert draws[0] != torch.rand(4, generator=torch.Generator().manual_seed(8)).tolist()
PY
