"""Initial weights of a model: finding them, reading them, and overlaying them on a model.

A file of weights is one .safetensors file; a folder written by `fedshare pretrain` stands for its
``model.safetensors``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedshare.errors import UserError, first_line
from fedshare.machine.files import data_folder
from fedshare.tensors import Tensors, digest, fingerprint

FILE = "model.safetensors"
HEAD = "head"  # the module that depends on the classes, and is skipped if it does not fit
SHOWN = 3


def locate(name: str, key: str = "weights") -> Path:
    """Return the path of the weights called `name`: a path, or ``weights/<name>`` in the folder of all data.

    This is a file, or a folder without a ``model.safetensors``. Raise UserError, naming the config's `key`, if neither
    place has anything.
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
    """Return the weights called `name`, on the CPU. Raise UserError if they are missing or damaged."""
    path = locate(name)
    if path.is_dir():
        raise UserError(f"{path}: holds no {FILE}, which `fedshare pretrain` leaves at its end")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged, or no .safetensors file: {first_line(error)}") from error


@dataclass(frozen=True)
class Given:
    """The weights called `name` that a model was given, and the types of its tensors."""

    name: str
    read: Callable[[], Tensors]
    types: Mapping[str, torch.dtype]  # by the names in the file

    @cached_property
    def digests(self) -> frozenset[str]:
        """Digests of the tensors' bits, without names, because a model may have renamed them since."""
        return frozenset(map(digest, self._tensors.values()))

    @cached_property
    def fingerprint(self) -> str:
        """The digest of all tensors with their names."""
        return fingerprint(self._tensors)

    @property
    def _tensors(self) -> Tensors:
        tensors = self.read()
        return {name: tensors[name].to(dtype) for name, dtype in self.types.items() if name in tensors}


def overlay(model: nn.Module, tensors: Tensors, name: str, head: str = HEAD) -> list[str]:
    """Copy `tensors`, which errors call `name`, into `model`, in its own types, including non-float buffers.

    Of names that the model ties to one tensor, one is enough. Below the module `head`, a tensor that is missing on
    either side, or has another shape there, is skipped. Return the names of the model's tensors that were not changed.
    Raise UserError, before anything is copied, if any other tensor does not fit, or one to be copied is not finite.
    """
    own, given = model.state_dict(), tensors
    tensors = {n: _typed(tensor, own.get(n)) for n, tensor in given.items()}
    ties = {n: [other for other in names if other in tensors] for names in _tied(own) for n in names}
    for wrong, names in {
        "the model lacks": tensors.keys() - own.keys(),
        # counters may be lacking
        "it lacks": (n for n in own.keys() - tensors.keys() if own[n].is_floating_point() and not ties.get(n)),
        "of another shape than the model's:": (
            n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape
        ),
        "the model has one tensor for others there:": (
            n for n, others in ties.items() if n in tensors and not tensors[n].equal(tensors[others[0]])
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
    return [n for n in own if n not in taken and not set(ties.get(n, ())) & set(taken)]


def _typed(tensor: Tensor, own: Tensor | None) -> Tensor:
    """Return a tensor in the model's format: a run stores complex tensors as real ones, with a last dimension of 2."""
    if own is None or not own.is_complex() or tensor.is_complex() or tensor.shape != (*own.shape, 2):
        return tensor
    return torch.view_as_complex(tensor)


def _tied(own: Tensors) -> list[list[str]]:
    """Return the groups of names that refer to the same tensor."""
    places: dict[object, list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            places.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    return [names for names in places.values() if names[1:]]


def _some(names: Sequence[str], own: Tensors, tensors: Tensors) -> str:
    """Return the first names, with both shapes if there are two, and the number of further ones."""

    def shown(n: str) -> str:
        return f"{n} ({list(tensors[n].shape)}, not {list(own[n].shape)})" if n in own and n in tensors else n

    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shown, names[:SHOWN])) + more
