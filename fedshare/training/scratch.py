"""One model in memory, used by all clients in turn."""

from collections.abc import Hashable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedshare.errors import UserError
from fedshare.tensors import Tensors, fingerprint
from fedshare.training.parts import Parts, Role, moving_buffers


class Scratch:
    """A module whose trained parameters, followed by its running statistics, are views of one flat vector.

    The parameters' gradients are views of another; shared parameters come before local ones. Loading, sending and
    stepping a whole model take a few operations, however many tensors it has. Frozen tensors are kept apart, in their
    own types, such as the integers of a quantised backbone. Complex parameters are stored as real ones, with a last
    dimension of 2. `load` undoes whatever a client does to the module.
    """

    def __init__(self, module: nn.Module, device: str | torch.device = "cpu", parts: Parts | None = None) -> None:
        self.module = module.to(device).eval()
        self.device = torch.device(device)
        self.parts = parts or Parts.of(module)
        roles, buffers = self.parts.roles, dict(module.named_buffers())
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        # Complex parameters come first, because their views of the floats must start at even offsets.
        trained = [
            name
            for role in (Role.SHARED, Role.LOCAL)
            for name in sorted(self.parameters, key=lambda name: not self.parameters[name].is_complex())
            if roles[name] is role
        ]
        self.trainable = trained
        # Running statistics have roles, as parameters do; all other buffers keep their initial values.
        moving = [name for name in moving_buffers(module) if roles[name] is not Role.FROZEN]
        self.parameter_names, self.buffer_names = frozenset(self.parameters), frozenset(moving_buffers(module))
        entries = {name: as_real(self.parameters[name].detach()) for name in trained}
        entries |= {name: buffers[name] for name in moving}
        if len(kinds := {entry.dtype for entry in entries.values()}) > 1:
            raise UserError(f"model: what is trained of it must have one type, not {sorted(map(str, kinds))}")
        self.moved = list(entries)  # names of the tensors in the flat vector, in order
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self.shared, self.local = (self.parts.named(role, self.moved) for role in (Role.SHARED, Role.LOCAL))
        self.flat = torch.cat([entry.reshape(-1) for entry in entries.values()])
        self.views = self._split(self.flat)
        self.gradient = _untouched_zeros(self._size(trained), self.flat)
        self._gradients = self._split(self.gradient, trained)
        self._check_even()
        self._buffers = {name: self.views[name] for name in moving}
        # Tensors that do not change, with their initial values.
        self._frozen = {n: (p.data, p.data.clone()) for n, p in self.parameters.items() if n not in entries}
        self._fixed = {name: (b, b.clone()) for name, b in buffers.items() if name not in entries}
        # The shared parameters, current and initial, each as one vector.
        first = self.flat.clone()
        size = self._size([name for name in self.shared if name in self.parameters])
        self.vector, self.first = self.flat[:size], first[:size]
        self._first = self._split(first)
        statistics = {name: self._fixed[name] for name in moving_buffers(module) if name in self._fixed}
        self._still = self._frozen | statistics
        self.shapes |= {name: as_real(first).shape for name, (_, first) in self._still.items()}
        apart = {name: as_real(first) for name, (_, first) in self._still.items()}
        self.whole = {name: tensor.cpu() for name, tensor in (self._first | apart).items()}
        # A strategy may need to distinguish parameters from running statistics.
        self.initial = {
            name: nn.Parameter(self.whole[name], requires_grad=False) if name in self.parameters else self.whole[name]
            for name in self.shared
        }
        self.cache: dict[Hashable, Any] = {}  # values derived from the model, shared by all clients
        self._restore()

    @property
    def size(self) -> int:
        """The number of elements of the whole model."""
        return sum(tensor.numel() for tensor in self.whole.values())

    def value(self, name: str) -> Tensor:
        """Return a view of the current parameter or running statistic, real and without a gradient."""
        return self.views[name] if name in self.views else as_real(self._still[name][0])

    def slope(self, name: str) -> Tensor:
        """Return a view of the gradient of the trained parameter `name`, real."""
        return self._gradients[name]

    def _check_even(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.is_complex() and name in self.views and self.views[name].storage_offset() % 2:
                raise UserError(f"model: {name} is complex, and in peft.local; only shared ones can be")

    def _typed(self, name: str, view: Tensor) -> Tensor:
        """Return a real view in the type of the module's own tensor."""
        return torch.view_as_complex(view) if self.parameters[name].is_complex() else view

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the whole initial model, frozen tensors included."""
        return fingerprint(self.whole)

    def begin(self, tensors: Tensors) -> None:
        """Replace the initial values of the tensors named in `tensors`, from now on.

        Raises ValueError, before anything is changed, if a tensor differs from the model's in shape or type, or is not
        finite where the model's is.
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
                first = self._first[name] if name in self._first else as_real(self._still[name][1])
                first.copy_(tensor)
                self.whole[name].copy_(tensor)  # a separate copy only if the model is on an accelerator
        self.cache.clear()
        vars(self).pop("fingerprint", None)
        self.load({})

    def _size(self, names: list[str]) -> int:
        return sum(self.shapes[name].numel() for name in names)

    def _split(self, flat: Tensor, names: list[str] | None = None) -> Tensors:
        names = self.moved if names is None else names
        pieces = flat.split([self.shapes[name].numel() for name in names])
        return {name: piece.view(self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}

    def _place(self, name: str) -> tuple[dict[str, Tensor | None], str]:
        owner, _, leaf = name.rpartition(".")
        return self.module.get_submodule(owner)._buffers, leaf

    def _restore(self) -> None:
        """Undo changes that code may make to the module: dropped gradients, freezing, replaced buffers, the mode."""
        for name, view in self.views.items():
            if name in self._buffers:
                place, leaf = self._place(name)
                place[leaf] = view
            else:
                parameter = self.parameters[name]
                parameter.data = self._typed(name, view)
                parameter.requires_grad_(True)
                parameter.grad = self._typed(name, self._gradients[name])
        if self.gradient.any():
            self.gradient.zero_()
        for name, (tensor, first) in self._frozen.items():
            parameter = self.parameters[name]
            parameter.data = tensor.copy_(first)
            parameter.requires_grad_(False)
            parameter.grad = None
        for name, (buffer, first) in self._fixed.items():
            place, leaf = self._place(name)
            place[leaf] = buffer.copy_(first)
        self.module.eval()

    def load(self, params: Tensors) -> None:
        """Reset the module to its initial values overlaid with `params`, in evaluation mode, without gradients."""
        if unknown := params.keys() - self.views.keys():
            raise KeyError(f"the model has no {', '.join(sorted(unknown))} that is trained")
        with torch.no_grad():
            for name, view in self.views.items():
                value = params.get(name, self._first[name])
                if value.shape != view.shape:  # copy_ would broadcast
                    raise ValueError(f"{name} has shape {list(value.shape)}, not {list(view.shape)}")
                view.copy_(value)
            self._restore()

    def train(self) -> None:
        """Put the module into training mode; if its backbone is frozen, only the modules added to it."""
        if self.parts.awake is None:
            self.module.train()
        else:
            for name in self.parts.awake:
                self.module.get_submodule(name).train()
            for name, module in self.module.named_modules():  # a module added to a layer may contain the layer itself
                if name not in self.parts.awake:
                    module.training = False

    def _gather(self) -> None:
        """Copy values that were assigned, as in ``self.mean = ...``, into the flat vector."""
        for name in self.trainable:
            parameter = self.parameters[name]
            if parameter.data_ptr() != self.views[name].data_ptr():
                self.views[name].copy_(as_real(parameter.data))
                parameter.data = self._typed(name, self.views[name])
        for name, view in self._buffers.items():
            place, leaf = self._place(name)
            if place[leaf] is not view:
                view.copy_(place[leaf])  # type: ignore[arg-type]
                place[leaf] = view

    def params(self, names: list[str] | None = None) -> Tensors:
        """Return a copy of the shared tensors, or of the tensors `names`, on the CPU."""
        self._gather()
        names = self.shared if names is None else names
        if names == self.moved[: len(names)]:
            return self._split(self.flat[: self._size(names)].to("cpu", copy=True), names)
        return {name: self.value(name).to("cpu", copy=True) for name in names}

    def batched(self, vectors: Tensor) -> Tensors:
        """Return several values ``[n, size]`` of `vector` as parameters, each ``[n, ...]``."""
        names = [name for name in self.shared if name in self.parameters]
        pieces = vectors.split([self.shapes[name].numel() for name in names], dim=1)
        found = {name: piece.view(-1, *self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return {
            name: torch.view_as_complex(piece.contiguous()) if self.parameters[name].is_complex() else piece
            for name, piece in found.items()
        }

    def slices(self, names: list[str]) -> list[Tensor]:
        """Return the trainable parameters `names` as the fewest possible flat vectors, each with its gradient."""
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


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as a real view with a last dimension of 2; a real one unchanged."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _untouched_zeros(size: int, like: Tensor) -> Tensor:
    """Return zeros; on a CPU the memory is allocated only when written, so unused gradients take none."""
    if like.device.type != "cpu":
        return like.new_zeros(size)
    return torch.from_numpy(np.zeros(size * like.itemsize, dtype=np.uint8)).view(like.dtype)
