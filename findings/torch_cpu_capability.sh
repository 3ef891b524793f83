#!/usr/bin/env bash
# The same torch wheel and the same seed give a different initial model on a CPU with fewer vector instructions.
#
# Versions: torch 2.13.0, on an x86 CPU with AVX2 (exits 77 elsewhere).
# Seen: rand, randperm and bernoulli_ are the same bits with and without AVX2; uniform_(a, b), randn of 16 and more, the
#   default weights of Linear and Conv2d, and two momentum steps of SGD from equal numbers are not.
# Expected: CPU draws of one seed and one build are portable; or none is.
# Matters: hosts that "draw the same initial model from the seed" start from different ones, and a digest of it refuses
#   honest participants. Send or store the initial model; draw shared noise from rand.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

cat > draws.py <<'PY'
import hashlib
import json

import torch

torch.set_num_threads(1)


def seeded():
    return torch.Generator().manual_seed(0)


def layer(make):
    torch.manual_seed(0)
    return make().weight


def stepped():
    values = torch.rand(1000, generator=seeded())
    weights = torch.nn.Parameter(values.clone())
    weights.grad = values.sqrt()
    optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
    optimizer.step()
    optimizer.step()
    return weights


drawn = {
    "rand": torch.rand(1000, generator=seeded()),
    "randperm": torch.randperm(1000, generator=seeded()),
    "bernoulli_": torch.empty(1000).bernoulli_(0.3, generator=seeded()),
    "uniform_": torch.empty(1000).uniform_(-0.1, 0.1, generator=seeded()),
    "randn": torch.randn(1000, generator=seeded()),
    "Linear": layer(lambda: torch.nn.Linear(30, 30)),
    "Conv2d": layer(lambda: torch.nn.Conv2d(3, 8, 3)),
    "SGD": stepped(),
}
digests = {name: hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()[:8] for name, value in drawn.items()}
print(json.dumps([torch.backends.cpu.get_cpu_capability(), digests]))
PY
for capability in default avx2; do
    ATEN_CPU_CAPABILITY=$capability "$folder/venv/bin/python" -W ignore draws.py > "$capability.json"
done

run <<'PY'
import json
import sys

(plain, one), (vector, two) = (json.load(open(f"{name}.json")) for name in ("default", "avx2"))
if (plain, vector) != ("DEFAULT", "AVX2"):
    print("needs an x86 CPU with AVX2, not", plain, vector)
    sys.exit(77)
same = [name for name in one if one[name] == two[name]]
for name in one:
    print(f"{name:10} {one[name]} without AVX2, {two[name]} with it")
assert same == ["rand", "randperm", "bernoulli_"], same
PY
