"""One model in memory, lent to each client in turn."""

from collections.abc import Hashable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.parts import Parts, Role, moving_buffers
from fedshare.tensors import Tensors, fingerprint


class Scratch:
    """A module whose parameters, and after them its floating-point buffers, are views of one flat vector.

    So are the gradients of the trainable ones, which come first, the shared before the local. Loading, sending and
    stepping a whole model are a few operations, however many tensors it has. Whatever a client does to the module,
    `load` undoes.
    """

    def __init__(self, module: nn.Module, device: str | torch.device = "cpu", parts: Parts | None = None) -> None:
        self.module = module.to(device).eval()
        self.device = torch.device(device)
        self.parts = parts or Parts.of(module)
        order = list(Role)
        named = sorted(module.named_parameters(), key=lambda entry: order.index(self.parts.roles[entry[0]]))
        self.parameters: dict[str, nn.Parameter] = dict(named)
        self.trainable = [name for name in self.parameters if self.parts.roles[name] is not Role.FROZEN]
        buffers = dict(module.named_buffers())
        # Running statistics have roles, as parameters do; all other buffers stay at their first value.
        moving = {name: buffers[name] for name in moving_buffers(module)}
        self._fixed = {name: (b, b.clone()) for name, b in buffers.items() if name not in moving}
        entries = self.parameters | moving
        if len(kinds := {entry.dtype for entry in entries.values()}) != 1:
            raise UserError(f"model: its parameters must have one type, not {sorted(map(str, kinds))}")
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self.shared, self.local = (self.parts.named(role, self.shapes) for role in (Role.SHARED, Role.LOCAL))
        self.flat = torch.cat([entry.detach().reshape(-1) for entry in entries.values()])
        self.views = self._split(self.flat)
        self.gradient = _untouched_zeros(self._size(self.trainable), self.flat)
        self._gradients = self._split(self.gradient, self.trainable)
        self._buffers = {name: self.views[name] for name in moving}
        # What is shared of the parameters, here and in the beginning, each as one vector.
        first = self.flat.clone()
        size = self._size([name for name in self.shared if name in self.parameters])
        self.vector, self.first = self.flat[:size], first[:size]
        self._first = self._split(first)
        self.whole = {name: tensor.cpu() for name, tensor in self._first.items()}
        # A strategy may have to tell parameters from running statistics.
        self.initial = {
            name: nn.Parameter(self.whole[name], requires_grad=False) if name in self.parameters else self.whole[name]
            for name in self.shared
        }
        self.cache: dict[Hashable, Any] = {}  # of what is made of it, for whoever asks again
        self._restore()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the whole model that everyone starts from: of what is frozen, too."""
        return fingerprint(self.whole)

    def begin(self, tensors: Tensors) -> None:
        """Let everyone start from `tensors` in the place of those of the same names, from now on.

        Raises ValueError, before anything is changed, where one is not of the model's shape and type, or is not finite
        where the model's is.
        """
        for name, tensor in tensors.items():
            if (own := self.whole.get(name)) is None:
                raise ValueError(f"the model has no {name}")
            if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
                form, wanted = (f"{t.dtype} {list(t.shape)}" for t in (tensor, own))
                raise ValueError(f"{name} is {form}, not {wanted}")
            if (own.isfinite() & ~tensor.isfinite()).any():
                raise ValueError(f"{name} holds NaN or infinity")
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._first[name].copy_(tensor)
                self.whole[name].copy_(tensor)  # elsewhere only where the model is on an accelerator
        self.cache.clear()
        vars(self).pop("fingerprint", None)
        self.load({})

    def _size(self, names: list[str]) -> int:
        return sum(self.shapes[name].numel() for name in names)

    def _split(self, flat: Tensor, names: list[str] | None = None) -> Tensors:
        names = list(self.shapes) if names is None else names
        pieces = flat.split([self.shapes[name].numel() for name in names])
        return {name: piece.view(self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}

    def _place(self, name: str) -> tuple[dict[str, Tensor | None], str]:
        owner, _, leaf = name.rpartition(".")
        return self.module.get_submodule(owner)._buffers, leaf

    def _restore(self) -> None:
        """Undo what code around a model is free to do: drop gradients, freeze, replace buffers, change the mode."""
        for name, parameter in self.parameters.items():
            parameter.data = self.views[name]
            parameter.requires_grad_(name in self._gradients)
            parameter.grad = self._gradients.get(name)
        if self.gradient.any():
            self.gradient.zero_()
        for name, view in self._buffers.items():
            place, leaf = self._place(name)
            place[leaf] = view
        for name, (buffer, first) in self._fixed.items():
            place, leaf = self._place(name)
            place[leaf] = buffer.copy_(first)
        self.module.eval()

    def load(self, params: Tensors) -> None:
        """Make the module the initial one overlaid with `params`, in evaluation mode, without gradients."""
        if unknown := params.keys() - self.views.keys():
            raise KeyError(f"the model has no {', '.join(sorted(unknown))}")
        with torch.no_grad():
            for name, view in self.views.items():
                value = params.get(name, self._first[name])
                if value.shape != view.shape:  # copy_ would broadcast
                    raise ValueError(f"{name} has shape {list(value.shape)}, not {list(view.shape)}")
                view.copy_(value)
            self._restore()

    def train(self) -> None:
        """Put the module into training mode; of a partly frozen one only what was added to it."""
        if self.parts.awake is None:
            self.module.train()
        else:
            for name in self.parts.awake:
                self.module.get_submodule(name).train()

    def _gather(self) -> None:
        """Take over what was assigned, as in ``self.mean = ...``, and not written in place."""
        for name, parameter in self.parameters.items():
            if parameter.data_ptr() != self.views[name].data_ptr():
                self.views[name].copy_(parameter.data)
                parameter.data = self.views[name]
        for name, view in self._buffers.items():
            place, leaf = self._place(name)
            if place[leaf] is not view:
                view.copy_(place[leaf])  # type: ignore[arg-type]
                place[leaf] = view

    def params(self, names: list[str] | None = None) -> Tensors:
        """A copy of what is shared, or of the tensors `names`, on the CPU."""
        self._gather()
        names = self.shared if names is None else names
        if names == list(self.shapes)[: len(names)]:
            return self._split(self.flat[: self._size(names)].to("cpu", copy=True), names)
        return {name: self.views[name].to("cpu", copy=True) for name in names}

    def batched(self, vectors: Tensor) -> Tensors:
        """Several of `vector` ``[n, size]`` as parameters, each ``[n, ...]``."""
        names = [name for name in self.shared if name in self.parameters]
        pieces = vectors.split([self.shapes[name].numel() for name in names], dim=1)
        return {name: piece.view(-1, *self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}

    def slices(self, names: list[str]) -> list[Tensor]:
        """The trainable parameters `names` as few flat vectors as they allow, each with its gradient."""
        chosen, spans, position = set(names), list[list[int]](), 0
        for name in self.trainable:
            end = position + self.shapes[name].numel()
            if name in chosen:
                if spans and spans[-1][1] == position:
                    spans[-1][1] = end
                else:
                    spans.append([position, end])
            position = end
        vectors: list[Tensor] = []
        for start, end in spans:
            vector = nn.Parameter(self.flat[start:end])
            vector.grad = self.gradient[start:end]
            vectors.append(vector)
        return vectors


def _untouched_zeros(size: int, like: Tensor) -> Tensor:
    """On a CPU, memory that is not taken before it is written to: who never trains by gradients needs none."""
    if like.device.type != "cpu":
        return like.new_zeros(size)
    return torch.from_numpy(np.zeros(size * like.itemsize, dtype=np.uint8)).view(like.dtype)
