"""Messages between processes of one machine: tensors through shared memory, everything else as JSON.

Tensors that are views of one memory are copied together, and are views of one memory again where they are read; what
was apart stays apart. What was read does not change when the next message is written.
"""

import ctypes
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedshare.machine.memory import Region

Header = dict[str, Any]
ALIGNED = 64  # bytes: torch's own tensors begin at multiples of this
SPARSE = 2  # a memory is copied as a whole if the tensors in it are at least one in so many of its bytes
LIST, TENSOR = -1, -2  # what an encoded list begins with; other values are the number of a dict's keys
PLAIN = frozenset({str, int, float, bool, type(None)})
_NONE: Mapping[int, int] = MappingProxyType({})


class Writer:
    """Writes one message into `region`. `shared` has the numbers, below zero, of tensors that the reader has already.

    Values are encoded one by one, so that one that cannot be does no harm to others. They must exist until `header`.
    """

    def __init__(self, region: Region, shared: Mapping[int, int] = _NONE) -> None:
        self._region, self._numbers = region, dict(shared)  # by id
        self._tensors: list[Tensor] = []
        self._places: list[tuple[tuple[int, int], int, int, int]] = []  # memory, address, bytes, kind
        self._spans: dict[tuple[int, int], list[int]] = {}  # by memory: first address, last address, bytes used
        self._kinds: dict[tuple[torch.dtype, torch.Size, tuple[int, ...]], int] = {}
        self._keys: dict[tuple[Any, ...], int] = {}

    def encoded(self, value: Any) -> Any:
        """Return `value` as JSON can hold it. Raises TypeError if there is something else in it than a state may have.

        Dicts are lists of their values, because clients' answers mostly have the same keys.
        """
        if type(value) in PLAIN:
            return value
        if isinstance(value, Tensor):
            return [TENSOR, self.number(value)]
        if isinstance(value, dict):
            keys = tuple(value)
            if keys not in self._keys:
                if wrong := [key for key in keys if type(key) not in (str, int)]:
                    raise TypeError(f"a key sent to or by a client is a str or an int, not {wrong[0]!r}")
                self._keys[keys] = len(self._keys)
            return [self._keys[keys], *map(self.encoded, value.values())]
        if isinstance(value, list):
            return [LIST, *map(self.encoded, value)]
        raise TypeError(f"what is sent to or by a client cannot hold a {type(value).__name__}")

    def number(self, tensor: Tensor) -> int:
        """Return the tensor's number in the message. A tensor that appears twice is stored once."""
        found = self._numbers.get(id(tensor))
        if found is not None:
            return found
        whole = tensor
        if not (tensor.is_cpu and tensor.is_contiguous()) or tensor.is_conj() or tensor.is_neg():
            whole = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
        kind = self._kinds.setdefault((whole.dtype, whole.shape, whole.stride()), len(self._kinds))
        memory, first, size = (0, 0), 0, whole.nbytes
        if size:
            storage, first = whole.untyped_storage(), whole.data_ptr()
            memory = storage.data_ptr(), storage.nbytes()
        span = self._spans.setdefault(memory, [first, first, 0])
        span[0], span[1], span[2] = min(span[0], first), max(span[1], first + size), span[2] + size
        found = self._numbers[id(tensor)] = len(self._places)
        self._places.append((memory, first, size, kind))
        self._tensors += [tensor, whole]
        return found

    def header(self, encoded: Any = None) -> Header:
        """Copy the tensors into the region, and return what the reader needs besides: the message."""
        blocks, copies, tensors, end = list[tuple[int, int]](), list[tuple[int, int, int]](), list[int](), 0
        sizes = [kind[0].itemsize for kind in self._kinds]
        begun: dict[tuple[int, int], tuple[int, int]] = {}  # by memory: its block, and the address where that begins
        for memory, address, size, kind in self._places:
            place = begun.get(memory)
            if place is None:
                first, last, used = self._spans[memory]
                if last - first <= SPARSE * used:
                    first -= (first - memory[0]) % ALIGNED
                    begun[memory] = len(blocks), first
                else:
                    first, last = address, address + size
                place = len(blocks), first
                blocks.append((end, last - first))
                copies.append((end, first, last - first))
                end += _padded(last - first)
            tensors += (place[0], kind, (address - place[1]) // sizes[kind])
        base = self._region.address(end)
        for start, first, size in copies:
            ctypes.memmove(base + start, first, size)
        kinds = [(str(dtype).removeprefix("torch."), shape, stride) for dtype, shape, stride in self._kinds]
        table = {"size": end, "blocks": blocks, "kinds": kinds, "tensors": tensors}
        return table | {"keys": list(self._keys), "value": encoded}

    @property
    def numbers(self) -> dict[int, int]:
        """The numbers by which other messages may name these tensors, by the tensors' ids."""
        return {key: ~number for key, number in self._numbers.items()}


def tensors(region: Region, header: Header) -> list[Tensor]:
    """Return copies of a message's tensors, by number."""
    base = region.address(header["size"])
    blocks = []
    for start, size in header["blocks"]:
        block = torch.empty(_padded(size), dtype=torch.uint8)
        ctypes.memmove(block.data_ptr(), base + start, size)
        blocks.append(block)
    kinds = [(getattr(torch, dtype), shape, stride) for dtype, shape, stride in header["kinds"]]
    typed: dict[tuple[int, int], Tensor] = {}
    found = []
    numbers = iter(header["tensors"])
    for place, kind, offset in zip(numbers, numbers, numbers, strict=True):
        dtype, shape, stride = kinds[kind]
        if (place, kind) not in typed:
            typed[place, kind] = blocks[place].view(dtype)
        found.append(torch.as_strided(typed[place, kind], shape, stride, offset))
    return found


def value(region: Region, header: Header, shared: list[Tensor]) -> Any:
    """Return the value of a message; `shared` are the tensors that its writer knew by numbers below zero."""
    known, keys = tensors(region, header), header["keys"]

    def decoded(item: Any) -> Any:
        if type(item) is not list:
            return item
        kind, *rest = item
        if kind == TENSOR:
            return known[rest[0]] if rest[0] >= 0 else shared[~rest[0]]
        return list(map(decoded, rest)) if kind == LIST else dict(zip(keys[kind], map(decoded, rest), strict=True))

    return decoded(header["value"])


def sealed(message: Mapping[str, Any]) -> bytes:
    """Return a message, or several by name, as bytes."""
    return json.dumps(message, separators=(",", ":")).encode()


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
