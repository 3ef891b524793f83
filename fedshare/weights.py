"""Weights that a model starts from: where they lie, reading them, laying them over a model.

A file of weights is one .safetensors file; a folder that `fedshare pretrain` left stands for its ``model.safetensors``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedshare.errors import UserError, first_line
from fedshare.files import data_folder
from fedshare.tensors import Tensors, digest, fingerprint

FILE = "model.safetensors"
HEAD = "head"  # the module that depends on the classes, and so is not taken over where it does not fit
SHOWN = 3


def locate(name: str, key: str = "weights") -> Path:
    """The weights called `name`: a path, or what lies at ``weights/<name>`` in the folder of all data.

    Give the file, or the folder if that is what it is and no ``model.safetensors`` is in it. Raise UserError, with the
    config's `key` that said so, where neither place has anything.
    """
    if not name:
        raise UserError(f"{key}: must be a path, or a name in the folder of weights; it is empty")
    here, shared = Path(name).expanduser(), data_folder() / "weights" / name
    for place in (here, shared):
        if place.exists():
            return place / FILE if (place / FILE).is_file() else place
    nor = "" if here == shared else f" or {shared}"
    raise UserError(f"{key}={name}: there is no {here}{nor}")


def read(name: str) -> Tensors:
    """The tensors of the weights called `name`, on the CPU. Raise UserError where there are none, or damaged ones."""
    path = locate(name)
    if path.is_dir():
        raise UserError(f"{path}: holds no {FILE}, which `fedshare pretrain` leaves at its end")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged, or no .safetensors file: {first_line(error)}") from error


@dataclass(frozen=True)
class Given:
    """What of a model came from the weights called `name`, and in which types it is held there."""

    name: str
    types: Mapping[str, torch.dtype]  # by the names of the file

    @cached_property
    def digests(self) -> frozenset[str]:
        """Of each of the tensors, its bits: a model may have given it another name since."""
        return frozenset(map(digest, self._tensors.values()))

    @cached_property
    def fingerprint(self) -> str:
        """Of all of them, with their names."""
        return fingerprint(self._tensors)

    @property
    def _tensors(self) -> Tensors:
        tensors = read(self.name)
        return {name: tensors[name].to(dtype) for name, dtype in self.types.items() if name in tensors}


def overlay(model: nn.Module, tensors: Tensors, name: str, head: str = HEAD) -> list[str]:
    """Copy `tensors`, which errors call `name`, into `model`, in its own types; non-float buffers too.

    Below the module `head` a tensor that is lacking on either side, or has another shape there, is left out. Return the
    names of the model's tensors that stayed as they were. Raise UserError, before anything is copied, where any other
    tensor does not fit, or one that would be copied is not finite.
    """
    own = model.state_dict()
    for wrong, names in {
        "the model lacks": tensors.keys() - own.keys(),
        "it lacks": (n for n in own.keys() - tensors.keys() if own[n].is_floating_point()),  # counters may be lacking
        "of another shape than the model's:": (
            n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape
        ),
    }.items():
        if unfit := sorted(n for n in names if not n.startswith(f"{head}.")):
            raise UserError(f"{name}: does not fit the model: {wrong} {_some(unfit, own, tensors)}")
    taken = [n for n in own if n in tensors and own[n].shape == tensors[n].shape]
    if broken := [n for n in taken if not tensors[n].to(own[n].dtype).isfinite().all()]:
        raise UserError(f"{name}: holds NaN or infinity: {_some(broken, {}, {})}")
    with torch.no_grad():
        for n in taken:
            own[n].copy_(tensors[n])
    return [n for n in own if n not in taken]


def _some(names: Sequence[str], own: Tensors, tensors: Tensors) -> str:
    """The first names, with both shapes where there are two, and how many more there are."""

    def shown(n: str) -> str:
        return f"{n} ({list(tensors[n].shape)}, not {list(own[n].shape)})" if n in own and n in tensors else n

    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shown, names[:SHOWN])) + more
