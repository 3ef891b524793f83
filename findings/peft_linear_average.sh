#!/usr/bin/env bash
# PEFT's "linear" average of LoRA adapters is not the average of their updates.
#
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0.
# Seen: add_weighted_adapter([a, b], [0.5, 0.5], combination_type="linear") is off from (BA + B'A')/2 by 0.94 of its
#   norm for two random adapters: it sums the As and the Bs, each times the root of its weight, so that crossed products
#   B A' come in. "cat" is exact (and of twice the rank). Even of one adapter twice, "linear" gives twice the update.
# Expected: the linear combination of what the adapters do.
# Matters: this is the tool at hand for FedAvg over adapters. Average products ("cat", then reduce the rank), or freeze
#   one factor.
source "$(dirname "$0")/common.sh"
venv_with peft==0.21.2 transformers==5.24.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
config = LoraConfig(target_modules=["0"], r=2)
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False)), config, adapter_name="a")
model.add_adapter("b", config)
layer = model.base_model.model[0]
for name in ("a", "b"):
    torch.nn.init.normal_(layer.lora_A[name].weight)
    torch.nn.init.normal_(layer.lora_B[name].weight)


def update(name):
    return layer.get_delta_weight(name).detach()


def off(got, want):
    return float((got - want).norm() / want.norm())


mean = (update("a") + update("b")) / 2
errors = {}
for kind in ("linear", "cat"):
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], kind, combination_type=kind)
    errors[kind] = off(update(kind), mean)
model.add_weighted_adapter(["a", "a"], [0.5, 0.5], "twice", combination_type="linear")
print("relative error", errors, "; a with itself is a times", float(update("twice").norm() / update("a").norm()))
assert errors["linear"] > 0.5
assert errors["cat"] < 1e-5
assert off(update("twice"), 2 * update("a")) < 1e-5
PY
