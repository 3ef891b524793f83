"""How far each client moves a round's aggregate: outliers, and suspects if the aggregate becomes unusable."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from fedshare.errors import RunHalted
from fedshare.payload import Payload
from fedshare.state import State

_NAMED = 3  # clients in a line
_TOGETHER = 2**16  # numbers of tensors that are treated together
_LARGE = 1e3  # values above this that have also grown by this factor were caused by a client

Uploads = Mapping[int, Payload]


class Watch:
    """Checks the aggregates of a run, round by round."""

    def __init__(self, max_norm_ratio: float | None = None) -> None:
        self.suspects = ""  # senders of the largest updates in the round in which the values of the state became large
        self._ratio = max_norm_ratio
        self._largest: float | None = None  # largest value in the state

    def outliers(self, uploads: Uploads, downloads: Uploads) -> dict[int, str]:
        """Return the clients whose updates exceed the norm bound, if there is one, and by how much."""
        if (most := self._ratio) is None or not uploads:
            return {}
        norms = _norms(uploads, downloads)
        moved = [length for length in norms.values() if length > 0]
        if not moved:
            return {}
        middle = median_low(norms.values()) or median_low(moved)  # if most changed nothing, the median of the others
        return {
            client: f"its update has norm {length:.3g}, {length / middle:.3g} times the median: max_norm_ratio={most:g}"
            for client, length in norms.items()
            if length > most * middle
        }

    def check(self, round: int, before: State, after: State, uploads: Uploads, downloads: Uploads) -> None:
        """Raise RunHalted if the aggregate is numerically unusable, and name the clients that have moved it most."""
        earlier = dict(_tensors(before))
        if self._largest is None:
            self._largest = max(map(_magnitude, earlier.values()), default=0.0)
        largest = 0.0
        for path, tensor in _tensors(after):
            was = earlier.get(path)
            if tensor is was:
                continue
            size = _magnitude(tensor)
            if size <= _most(tensor):
                largest = max(largest, size)
            elif was is None or _magnitude(was) <= _most(was):  # otherwise an infinity of the strategy's own
                found = f"numbers up to {size:.3g}" if size < math.inf else "NaN or infinity"
                raise RunHalted(
                    f"round {round}: the aggregate is of no use, for {path} holds {found}; "
                    f"the largest updates are those of {_largest(uploads, downloads)}"
                    + (f"; {self.suspects}" if self.suspects else "")
                )
        if largest <= _LARGE:
            self.suspects = ""
        elif largest > _LARGE * self._largest:
            self.suspects = f"the largest updates in round {round} were those of {_largest(uploads, downloads)}"
        self._largest = largest


def norm(upload: Payload, sent: Payload) -> float:
    """Return the norm of an update: the upload minus the tensors of the same names that the client was sent.

    In float64, because the square of 3e38 overflows float32.
    """
    return _norms({0: upload}, {0: sent})[0]


def _norms(uploads: Uploads, downloads: Uploads) -> dict[int, float]:
    """Return the norms of all updates; like tensors of clients that were sent the same one are treated together."""
    alike = dict[tuple[Any, ...], list[tuple[int, Tensor]]]()
    starts = dict[tuple[Any, ...], Tensor | None]()
    for client, upload in uploads.items():
        for group, name, tensor in _named(upload):
            start = downloads[client].tensors.get(group, {}).get(name)
            key = group, name, tensor.shape, tensor.dtype, id(start)
            starts[key] = start
            alike.setdefault(key, []).append((client, tensor))
    lengths = dict[tuple[int, str, str], float]()
    for key, found in alike.items():
        many = max(1, _TOGETHER // max(1, found[0][1].numel()))
        for first in range(0, len(found), many):
            clients, tensors = zip(*found[first : first + many], strict=True)
            for client, length in zip(clients, _lengths(tensors, starts[key]), strict=True):
                lengths[client, key[0], key[1]] = length
    return {client: math.hypot(*(lengths[client, g, n] for g, n, _ in _named(u))) for client, u in uploads.items()}


def _lengths(tensors: Sequence[Tensor], start: Tensor | None) -> list[float]:
    """Return the norm of each tensor minus `start`, or of each tensor if that has another shape."""
    first = tensors[0]
    together = torch.stack(list(tensors)) if len(tensors) > 1 else first[None]
    precise = together.to(torch.complex128 if first.is_complex() else torch.float64)
    change = precise - start if start is not None and start.shape == first.shape else precise
    lengths: list[float] = torch.linalg.vector_norm(change.reshape(len(tensors), first.numel()), dim=1).tolist()
    return lengths


def _named(upload: Payload) -> Iterator[tuple[str, str, Tensor]]:
    for group, tensors in upload.tensors.items():
        for name, tensor in tensors.items():
            if _numeric(tensor):
                yield group, name, tensor


def _largest(uploads: Uploads, downloads: Uploads) -> str:
    """``client 2 (norm 3.4e+38, 1.2e+39 times the median), client 0 (...)``."""
    norms = _norms(uploads, downloads)
    middle = median_low(norms.values())
    first = sorted(norms, key=lambda client: (-norms[client], client))[:_NAMED]
    times = {client: f", {norms[client] / middle:.3g} times the median" if middle > 0 else "" for client in first}
    return ", ".join(f"client {client} (norm {norms[client]:.3g}{times[client]})" for client in first)


def _tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point and complex tensors of a state, by path."""
    if isinstance(value, Tensor):
        if _numeric(value) and value.numel():
            yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(item, f"{path}/{key}" if path else str(key))


def _numeric(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _magnitude(tensor: Tensor) -> float:
    """Return the largest absolute value; infinity if there is a NaN."""
    low, high = torch.aminmax(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    found = max(-float(low), float(high))
    return math.inf if math.isnan(float(low)) else found


def _most(tensor: Tensor) -> float:
    """Return the largest value whose square is finite, too: others turn into NaN in the next round's training."""
    wide = tensor.dtype in (torch.float64, torch.complex128)
    return math.sqrt(torch.finfo(torch.float64 if wide else torch.float32).max)
