"""Calling a model with other tensors in place of its own."""

from typing import Any

import torch

from fedshare.data.dataset import Inputs
from fedshare.tasks import models
from fedshare.tensors import Tensors
from fedshare.training.scratch import Scratch


def call(scratch: Scratch, tensors: Tensors, inputs: Inputs) -> Any:
    """Return what the model returns for a batch's inputs, with `tensors` in place of those of these names.

    torch 2.13 leaves one of them in the module if a submodule is in several places, so they are put back here.
    """
    module, positional_named = scratch.module, models.arguments(inputs)
    own = [(owner._parameters, dict(owner._parameters)) for owner in module.modules()]
    try:
        return torch.func.functional_call(module, tensors, *positional_named)
    finally:
        for place, parameters in own:
            place.update(parameters)
