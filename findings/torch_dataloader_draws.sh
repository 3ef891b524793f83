#!/usr/bin/env bash
# Iterating over a torch DataLoader without shuffling or workers draws a number from the global generator.
#
# Versions: torch 2.13.0.
# Seen: each pass over DataLoader(shuffle=False, num_workers=0) draws one base seed, so the next torch.rand is another
#   than without that pass. With a generator of its own the loader leaves the global one alone.
# Expected: a pass in order, in this process, is not random.
# Matters: evaluating a client (or not, or in another order) changes the dropout and the noise of all training after
#   it: runs that differ only in how often they evaluate train differently. Give every loader a generator.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from torch.utils.data import DataLoader, TensorDataset

rows = TensorDataset(torch.arange(10.0))


def after(**options):
    torch.manual_seed(0)
    if options:
        list(DataLoader(rows, batch_size=5, **options))
    return torch.rand(1).item()


nothing, plain, own = after(), after(shuffle=False), after(shuffle=False, generator=torch.Generator())
print("next number: no pass", nothing, "a pass", plain, "a pass with its own generator", own)
assert plain != nothing
assert own == nothing
PY
