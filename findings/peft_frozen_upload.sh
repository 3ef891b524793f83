#!/usr/bin/env bash
# PEFT's adapter state for VeRA and RandLoRA consists almost entirely of frozen random projections.
#
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0.
# Seen: four layers of 768 x 768. VeRA trains 4,096 numbers and get_peft_model_state_dict gives 397,312; RandLoRA 76,800
#   and 3,148,800, more than the four layers themselves (2,362,368). LoRA of rank 8: 49,152 and 49,152. With
#   save_projection=False VeRA gives 4,096; the projections come from a seed in the config anyway.
# Expected: "the adapter" is what is trained, the fewer parameters the fewer bytes.
# Matters: this function is how PEFT methods are shared, and VeRA is chosen to send less than LoRA. By default it sends
#   eight times more, and RandLoRA more than the whole model.
source "$(dirname "$0")/common.sh"
venv_with peft==0.21.2 transformers==5.24.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch
from peft import LoraConfig, RandLoraConfig, VeraConfig, get_peft_model, get_peft_model_state_dict

targets = ["0", "1", "2", "3"]
configs = {
    "LoRA": LoraConfig(target_modules=targets, r=8),
    "VeRA": VeraConfig(target_modules=targets),
    "VeRA, save_projection=False": VeraConfig(target_modules=targets, save_projection=False),
    "RandLoRA": RandLoraConfig(target_modules=targets),
}
seen = {}
for name, config in configs.items():
    model = get_peft_model(torch.nn.Sequential(*[torch.nn.Linear(768, 768) for _ in targets]), config)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    shared = sum(tensor.numel() for tensor in get_peft_model_state_dict(model).values())
    seen[name] = trained, shared
    print(f"{name}: trains {trained:,}, state holds {shared:,}")
assert seen["LoRA"] == (49_152, 49_152)
assert seen["VeRA"] == (4_096, 397_312)
assert seen["VeRA, save_projection=False"] == (4_096, 4_096)
assert seen["RandLoRA"][1] > 4 * (768 * 768 + 768) > seen["RandLoRA"][0]
PY
