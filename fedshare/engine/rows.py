"""Many clients' models in memory at once: each client's own is a row, and the module holds one of them at a time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedshare.tensors import Tensors
from fedshare.training.scratch import Scratch


class Row(Scratch):
    """A client's model while other clients of the same group have theirs.

    It shares the module and everything that does not change with the scratch model it is made from. Its values are the
    tensors loaded last, until they are needed as one vector; then a vector of its own, or a row of a group's matrix.
    The module is given a row's values only when it is used (`mount`), and holds them until another row needs it or
    this row's client waits (`leave`).
    """

    def __init__(self, base: Scratch, desk: "Desk", mounting: Callable[[], None]) -> None:
        self.__dict__.update(base.__dict__)
        self._desk, self._mounting = desk, mounting  # called before the module is used
        self._loaded: Tensors | None = None  # what the model was reset to, over the initial values
        self._values: Tensor | None = None  # like `flat`
        self._copied: Tensors | None = None  # a copy of the shared part of `_values` that nobody has been given yet

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        self.mount()
        return self._desk.module

    @property
    def vector(self) -> Tensor:  # type: ignore[override]
        self.mount()
        return self._desk.base.vector

    def value(self, name: str) -> Tensor:
        self.mount()
        return super().value(name)

    def load(self, params: Tensors) -> None:
        if unknown := params.keys() - self.views.keys():
            raise KeyError(f"the model has no {', '.join(sorted(unknown))} that is trained")
        for name, value in params.items():
            if value.shape != self.shapes[name]:
                raise ValueError(f"{name} has shape {list(value.shape)}, not {list(self.shapes[name])}")
        self._desk.discard(self)
        self._loaded, self._values, self._copied = params, None, None

    def params(self, names: list[str] | None = None) -> Tensors:
        if self._desk.holder is self:
            return super().params(names)
        if names is None and self._copied:
            copied, self._copied = self._copied, None
            return copied
        names = self.shared if names is None else names
        if self._loaded is not None:
            first = self._first
            found = {n: self._loaded.get(n, first[n] if n in first else self.whole[n]) for n in names}
            return {n: tensor.to("cpu", copy=True) for n, tensor in found.items()}
        if self._values is not None and names == self.moved[: len(names)]:
            return self._split(self._values[: self._size(names)].to("cpu", copy=True), names)
        self.mount()
        return super().params(names)

    def same_as(self, other: "Row") -> bool:
        """Return whether both hold what was loaded last, and these are the same tensor objects."""
        mine, theirs = self._loaded, other._loaded
        return (
            mine is not None
            and theirs is not None
            and mine.keys() == theirs.keys()
            and all(value is theirs[name] for name, value in mine.items())
        )

    def write(self, values: Tensor) -> None:
        """Copy the model's values into `values`, like `flat`. The module must not have them."""
        if self._values is not None:
            values.copy_(self._values)
            return
        for name, view in self._split(values).items():
            view.copy_((self._loaded or {}).get(name, self._first[name]))

    def become(self, values: Tensor, copied: Tensors | None = None) -> None:
        """Take `values`, like `flat`, as the model's own from now on.

        Who asks for the shared part first is given `copied`, a copy on the CPU.
        """
        self._loaded, self._values, self._copied = None, values, copied

    def mount(self) -> None:
        """Give the module this model's values, unless it has them. A model never loaded takes what the module holds."""
        if self._desk.holder is self:
            return
        self._mounting()
        self._desk.clear()
        self._desk.holder, self._copied = self, None
        if self._loaded is not None or self._values is not None:
            with torch.no_grad():
                self.write(self.flat)
                self._restore()

    def lend_no_more(self) -> None:
        """Free the module, which has not changed the values."""
        self._desk.discard(self)

    def leave(self) -> None:
        """Take the values back from the module, if it has them."""
        if self._desk.holder is self:
            self._gather()
            self._desk.holder = None
            self.become(self.flat.clone())


class Desk:
    """The one module of a process, and the row that it holds at the moment."""

    def __init__(self, base: Scratch) -> None:
        self.base, self.module = base, base.module
        self.holder: Row | None = None

    def row(self, mounting: Callable[[], None]) -> Row:
        return Row(self.base, self, mounting)

    def clear(self) -> None:
        """Let the holder take its values back."""
        if self.holder:
            self.holder.leave()

    def vacate(self) -> None:
        """As `clear`; the module is then as it was before any row held it."""
        if self.holder:
            self.clear()
            self.base._restore()

    def discard(self, row: Row) -> None:
        """Forget what the module holds of `row`."""
        if self.holder is row:
            self.holder = None


def piece(models: Tensor, row: Row, name: str) -> Tensor:
    """Return a tensor of all models ``[clients, size]``, as a view ``[clients, ...]``."""
    start, shape = row.views[name].storage_offset(), row.shapes[name]
    return models[:, start : start + shape.numel()].view(len(models), *shape)


def matrix(rows: list[Row]) -> Tensor:
    """Return the models of `rows`, none of them mounted, as one matrix ``[rows, size]``."""
    found = torch.empty(len(rows), *rows[0].flat.shape, dtype=rows[0].flat.dtype, device=rows[0].flat.device)
    last, start = rows[0], 0
    for place, row in enumerate([*rows[1:], None], 1):
        if row is not None and row.same_as(last):
            continue
        last.write(found[start])
        found[start + 1 : place] = found[start]  # many clients load the one global model
        if row is not None:
            last, start = row, place
    return found
