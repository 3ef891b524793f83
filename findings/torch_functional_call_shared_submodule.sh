#!/usr/bin/env bash
# torch.func.functional_call leaves a module changed if one of its submodules is registered in two places.
#
# Versions: torch 2.13.0, numpy 2.4.6.
# Seen: a ParameterDict shared by two layers, as peft's VB-LoRA shares its vector bank, is one parameter under two names.
#   functional_call swaps it in and back once per name, and restores the second name last, from what the first had put
#   there: afterwards the module holds a plain tensor with the caller's values instead of its Parameter. Nothing is said.
# Expected: the module as it was, as with tie_weights=False.
# Matters: the model's own later calls compute with another client's values, or with a tensor that vmap has left. Keep
#   the modules' own parameters and put them back, or call with tie_weights=False and all names.

source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6
run <<'PY'
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, bank):
        super().__init__()
        self.bank = bank

    def forward(self, x):
        return x * self.bank["default"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        bank = nn.ParameterDict({"default": torch.ones(2)})
        self.first, self.second = Layer(bank), Layer(bank)

    def forward(self, x):
        return self.second(self.first(x))


for tie in (True, False):
    net = Net()
    own = net.first.bank["default"]
    doubled = {name: 2 * parameter.detach() for name, parameter in net.named_parameters()}
    assert list(doubled) == ["first.bank.default"]
    torch.func.functional_call(net, doubled, (torch.ones(2),), tie_weights=tie)
    now = net.first.bank["default"]
    print(f"tie_weights={tie}: {type(now).__name__}, {now.tolist()}, calls give {net(torch.ones(2)).tolist()}")
    assert (now is own) is (not tie)
    assert net(torch.ones(2)).tolist() == ([4.0, 4.0] if tie else [1.0, 1.0])
PY
