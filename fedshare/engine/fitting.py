"""Which training can be batched, known before any of it."""

import torch
from torch import nn

from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

# These treat each number on its own, so that stacking clients changes no step.
ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax),
)


def objection(scratch: Scratch, training: Training) -> str | None:
    """Return why no training of this model can be batched; None if it may be, for its code can still forbid it."""
    if training.sampling != "shuffle":
        return f"sampling={training.sampling}: each client's batches have sizes of their own"
    if training.compile:
        return "compile=true: compiles the steps of one client"
    if moving := sorted(scratch.buffer_names & set(scratch.moved)):
        return f"training changes the model's buffer {moving[0]}"
    if any(parameter.is_complex() for parameter in scratch.parameters.values()):
        return "the model has complex parameters"
    optimizer = training.optimizer([nn.Parameter(torch.zeros(1 if training.flat else (1, 1)))])
    if type(optimizer) not in ELEMENTWISE:
        return f"{type(optimizer).__name__} does not treat each number on its own"
    return None
