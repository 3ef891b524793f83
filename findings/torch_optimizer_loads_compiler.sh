#!/usr/bin/env bash
# The first optimizer of a process loads the whole of torch's compiler, in programs that compile nothing.
#
# Versions: torch 2.13.0.
# Seen: `torch.optim.SGD([p], lr=0.1)` imports torch._dynamo and some 500 other modules: about 1.5 s of one core and
#   70 MB where `import torch` itself takes 2 s. A second optimizer costs nothing. `torch.autograd.grad` and a step
#   written by hand need none of it.
# Expected: what is only compiled with is loaded by torch.compile.
# Matters: simulators and deployments start a process for each worker, client or even message; there it is the largest
#   part of the start after torch's own import. One may keep processes, or fork after the first optimizer.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

run <<'PY'
import sys
import time

import torch

parameter = torch.nn.Parameter(torch.ones(3))
(slope,) = torch.autograd.grad(parameter.square().sum(), parameter)
with torch.no_grad():
    parameter.sub_(slope, alpha=0.1)
before = set(sys.modules)
print("after a step by hand: the compiler is", "loaded" if "torch._dynamo" in before else "not loaded")
assert "torch._dynamo" not in before

began = time.perf_counter()
torch.optim.SGD([parameter], lr=0.1)
first = time.perf_counter() - began
new = set(sys.modules) - before
print(f"the first optimizer: {first:.2f} s, {len(new)} modules more, torch._dynamo among them: {'torch._dynamo' in new}")
assert "torch._dynamo" in new
assert len(new) > 200

began = time.perf_counter()
torch.optim.SGD([parameter], lr=0.1)
print(f"the second: {time.perf_counter() - began:.4f} s")
PY
