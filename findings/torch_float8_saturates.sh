#!/usr/bin/env bash
# Infinity cast to float8_e4m3fn is 448 in torch and NaN in ml_dtypes.
#
# Versions: torch 2.13.0, ml_dtypes 0.6.0.
# Seen: torch saturates: 1000 and infinity become 448. ml_dtypes (numpy, JAX, TensorFlow) makes NaN of both. torch's own
#   float8_e5m2 and float16 turn what is too large into infinity.
# Expected: one cast to one format has one result, and infinity does not become an ordinary number.
# Matters: an update that diverged to infinity is finite once it has travelled as float8, so `isfinite` at the server
#   finds nothing; and a fleet of mixed frameworks does not agree on what arrived. Check before the cast.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0

run <<'PY'
import ml_dtypes
import numpy as np
import torch

large = [1000.0, float("inf"), float("-inf")]
torch_e4m3 = torch.tensor(large).to(torch.float8_e4m3fn).float().tolist()
torch_e5m2 = torch.tensor([1e6, float("inf")]).to(torch.float8_e5m2).float().tolist()
numpy_e4m3 = np.array(large, np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
print("e4m3fn by torch", torch_e4m3, "by ml_dtypes", numpy_e4m3.tolist(), "; e5m2 by torch", torch_e5m2)
assert torch_e4m3 == [448.0, 448.0, -448.0]
assert np.isnan(numpy_e4m3).all()
assert torch_e5m2 == [float("inf")] * 2
PY
