"""How a model is called in training and in tests: in which precision and memory layout, and whether it is compiled."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fedshare.data.dataset import Inputs, mapped
from fedshare.errors import UserError, first_line
from fedshare.tasks import models
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training


def autocast(training: Training, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the model computes in the configured precision."""
    return torch.autocast(device.type, torch.bfloat16) if training.precision == "bfloat16" else nullcontext()


def arranged(training: Training, inputs: Inputs) -> Inputs:
    """Return the inputs in the configured memory layout, which concerns images, ``[batch, channels, height, width]``.

    The weights stay as they are: convolutions bring them into the layout of their inputs.
    """
    return inputs if training.layout == "contiguous" else mapped(_channels_last, inputs)


def _channels_last(part: Tensor) -> Tensor:
    # Not `contiguous`, which leaves images of one channel as they are.
    return part.to(memory_format=torch.channels_last) if part.ndim == 4 else part


def step_output(training: Training, scratch: Scratch, inputs: Inputs) -> Any:
    """Return what the model returns in a step of training, unchanged. Raises UserError if it cannot be compiled."""
    with autocast(training, scratch.device):
        if not training.compile:
            return models.call(scratch.module, arranged(training, inputs))
        try:
            return models.call(_compiled(scratch), arranged(training, inputs))
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)  # the rest is advice to developers of torch
            raise UserError(f"client.compile=true: {first_line(cause)}") from error


def _compiled(scratch: Scratch) -> nn.Module:
    """Return the module compiled, once for all clients of this process."""
    if "compiled" not in scratch.cache:
        scratch.cache["compiled"] = torch.compile(scratch.module)
    compiled: nn.Module = scratch.cache["compiled"]
    return compiled
