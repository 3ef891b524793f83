"""Calling a model with several inputs or outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedshare.data.dataset import Inputs
from fedshare.errors import UserError

FIRST = ("logits", "out")  # libraries' usual names for the main output


def arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return a model's positional and keyword arguments: a tuple's items, or a dict's."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})


def call(module: nn.Module, inputs: Inputs) -> Any:
    """Call the model and return its result unchanged."""
    positional, named = arguments(inputs)
    return module(*positional, **named)


def select(returned: Any, output: str | int | None) -> tuple[Tensor, list[Tensor]]:
    """Return a model's main output and its other floating-point outputs, in float32 if they have fewer bits.

    A model returns a tensor, a tuple (or list) or a dict. `output` is the main output's position or key; None means the
    key ``logits`` or ``out`` if there is one, otherwise the first. Raises UserError if that is not a tensor.
    """
    if isinstance(returned, Tensor) and output is None:
        return _full(returned), []
    if isinstance(returned, Mapping):
        known: dict[Any, Any] = dict(returned)
    else:
        known = dict(enumerate(returned if isinstance(returned, tuple | list) else [returned]))
    key = output if output is not None else next((name for name in FIRST if name in known), next(iter(known), None))
    answer = known.pop(key, None)
    if not isinstance(answer, Tensor):
        have = f"a {type(returned).__name__}" + (f" of {', '.join(map(str, known))}" if known else "")
        raise UserError(f"task.output={output}: the model returns {have}, and no tensor there")
    others = [_full(other) for other in known.values() if isinstance(other, Tensor) and other.is_floating_point()]
    return _full(answer), others


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
