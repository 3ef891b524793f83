#!/usr/bin/env bash
# safetensors stores a conjugated complex tensor without the conjugation.
#
# Versions: safetensors 0.8.0, torch 2.13.0.
# Seen: torch's x.conj() is a view with a flag; save writes the bytes beneath. [1-2j, 3+1j] comes back as [1+2j, 3-1j],
#   with no error. resolve_conj() before saving helps.
# Expected: the tensor's values, or a refusal as for other views (a transposed tensor is refused).
# Matters: updates compressed in the Fourier domain travel as complex tensors, and conj() is how half of a spectrum of
#   real numbers is made from the other. What arrives is another update.
source "$(dirname "$0")/common.sh"
venv_with safetensors==0.8.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from safetensors.torch import load, save

spectrum = torch.tensor([1 + 2j, 3 - 1j]).conj()
back = load(save({"spectrum": spectrum}))["spectrum"]
resolved = load(save({"spectrum": spectrum.resolve_conj()}))["spectrum"]
print("saved", spectrum.tolist(), "loaded", back.tolist(), "resolved first", resolved.tolist())
assert back.tolist() == spectrum.conj().tolist()
assert back.tolist() != spectrum.tolist()
assert resolved.tolist() == spectrum.tolist()
try:
    save({"view": torch.zeros(3, 4).t()})
    raise SystemExit("a transposed view is no longer refused")
except ValueError as error:
    print("a transposed view:", str(error)[:55])
PY
