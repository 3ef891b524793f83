"""Payloads as bytes: a small header that describes the tensors, and their bytes concatenated.

Incoming payloads are untrusted: each is checked against its own header before anything is read from it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedshare._proto import DecodeError
from fedshare._proto.payload_pb2 import Contents, Metric
from fedshare._proto.payload_pb2 import Tensor as Entry
from fedshare.payload import Payload, Quota
from fedshare.tensors import Tensors

# The numbers are part of the message format: never change their meaning.
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.float16,
    4: torch.bfloat16,
    5: torch.bool,
    6: torch.uint8,
    7: torch.int8,
    8: torch.int16,
    9: torch.int32,
    10: torch.int64,
}
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
# Numpy has no bfloat16, and bool bytes must be checked.
_NUMPY = {d: torch.empty(0, dtype=d).numpy().dtype for d in DTYPES.values() if d not in (torch.bfloat16, torch.bool)}
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 32  # supported by every numpy version
FACTOR = 2  # a message may be this many times larger than expected,
SLACK = 1 << 20  # plus this many bytes
_METRICS, _LONGEST_METRIC = 100, 80  # the metrics of an upload are not known in advance
_ENTRY = 64  # bytes of a tensor's type and shape, or of a digest


@dataclass(frozen=True)
class Limits:
    """The limits on an answer's size."""

    body: int  # bytes in total
    head: int  # bytes except tensors
    tensors: int
    leaves: int  # digests of its client's memory
    name: int  # characters of a name

    @property
    def bytes(self) -> tuple[int, int]:
        return self.body, self.head

    @classmethod
    def of(cls, quota: Quota, slack: int = SLACK, parts: int = 0) -> "Limits":
        """Return the limits for `quota`; `parts` is a model's number of tensors, and clients may remember several."""
        longest = max(quota.longest, _ENTRY)
        head = slack + FACTOR * (quota.tensors + parts) * (longest + _ENTRY)
        return cls(head + FACTOR * quota.nbytes, head, 4 * quota.tensors + 64, 16 * parts + 256, longest + 100)


def pack(payload: Payload) -> tuple[Contents, bytearray]:
    """Return the header and the tensors' bytes. Raises ValueError on a type that has no number."""
    contents = Contents(metrics=[Metric(name=name, value=value) for name, value in payload.metrics.items()])
    tensors = [tensor for group in payload.tensors.values() for tensor in group.values()]
    data = bytearray(sum(tensor.nbytes for tensor in tensors))
    view, position, last = np.frombuffer(data, np.uint8), 0, ""
    if not all(payload.tensors.values()):  # then all groups are listed first, to keep their order
        contents.empty_groups.extend(payload.tensors)
    for group, named in payload.tensors.items():
        for name, tensor in named.items():
            if tensor.dtype not in _NUMBERS:
                raise ValueError(f"{group!r:.60}: {name!r:.60} is {tensor.dtype}, which cannot be sent")
            if last and not group:  # a group's name is written once; "" continues it
                raise ValueError("a group without a name must be the first")
            entry = contents.layout.add(group=group if group != last else "", name=name, dtype=_NUMBERS[tensor.dtype])
            entry.shape.extend(tensor.shape)
            last = group
            if tensor.nbytes:
                view[position : position + tensor.nbytes] = _as_bytes(tensor)
            position += tensor.nbytes
    return contents, data


def unpack(contents: Contents, data: bytes | bytearray, limits: Limits | None = None) -> Payload:
    """Return the payload that `pack` encoded. Raises ValueError, in one line, on anything else, or beyond `limits`."""
    if limits:
        _check(contents, limits)
    if len(contents.layout) > MOST_TENSORS:
        raise ValueError(f"it holds {len(contents.layout)} tensors; at most {MOST_TENSORS} are taken")
    tensors: dict[str, Tensors] = {group: {} for group in contents.empty_groups}
    own = data if isinstance(data, bytearray) else bytearray(data)  # tensors must be writable; bytes are not
    position, group = 0, ""
    for entry in contents.layout:
        group, name = entry.group or group, entry.name
        dtype, shape, size = _described(entry, name)
        if position + size > len(data):
            raise ValueError(f"its tensors want at least {position + size} bytes, and it has {len(data)}")
        if name in tensors.setdefault(group, {}):
            raise ValueError(f"{group!r:.60}: {name!r:.60} stands in it twice")
        tensors[group][name] = _taken(own, position, shape, dtype, name)
        position += size
    if position != len(data):
        raise ValueError(f"its tensors want {position} bytes, and it has {len(data)}")
    metrics = {metric.name: metric.value for metric in contents.metrics}
    if len(metrics) != len(contents.metrics):
        raise ValueError("a metric stands in it twice")
    return Payload(tensors, metrics)


def to_bytes(payload: Payload) -> bytes:
    """Return a payload as one message: the header's length in four bytes, the header, and the tensors' bytes."""
    contents, data = pack(payload)
    head = contents.SerializeToString()
    return b"".join((len(head).to_bytes(4, "little"), head, data))


def from_bytes(message: bytes, limits: Limits | None = None) -> Payload:
    """Return the payload that `to_bytes` encoded. Raises ValueError on anything else, or beyond `limits`."""
    if limits and len(message) > limits.body:
        raise ValueError(f"it has {len(message)} bytes; at most {limits.body} are taken")
    size = int.from_bytes(message[:4], "little")
    most = min(limits.head, len(message) - 4) if limits else len(message) - 4
    if size > most:
        raise ValueError(f"its header has {size} bytes; at most {most} are possible")
    try:
        contents = Contents.FromString(message[4 : 4 + size])
    except DecodeError:
        raise ValueError("its header cannot be read") from None
    return unpack(contents, bytearray(message[4 + size :]), limits)


def _check(contents: Contents, limits: Limits) -> None:
    counts = {
        "tensors": (len(contents.layout), limits.tensors),
        "empty groups": (len(contents.empty_groups), limits.tensors),
        "metrics": (len(contents.metrics), _METRICS),
    }
    for what, (count, most) in counts.items():
        if count > most:
            raise ValueError(f"it holds {count} {what}; at most {most} are taken")
    longest = max(map(len, contents.empty_groups), default=0)
    for entry in contents.layout:
        longest = max(longest, len(entry.group), len(entry.name))
    if longest > limits.name:
        raise ValueError(f"a name in it has {longest} characters; at most {limits.name} are taken")
    for metric in contents.metrics:  # they are recorded under these names
        name = metric.name
        if not name.isprintable() or len(name) > _LONGEST_METRIC:
            raise ValueError(f"a metric in it is named {name!r:.60}; at most {_LONGEST_METRIC} characters are taken")


def _described(entry: Entry, name: str) -> tuple[torch.dtype, list[int], int]:
    """Return type, shape and size in bytes."""
    if (dtype := DTYPES.get(entry.dtype)) is None:
        raise ValueError(f"{name!r:.60} is of type number {entry.dtype}, which does not exist")
    shape = list(entry.shape)
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name!r:.60} has {len(shape)} dimensions; at most {MOST_DIMENSIONS} are taken")
    count, size = math.prod(shape), dtype.itemsize
    if (count or math.prod(filter(None, shape))) * size >= 1 << 63:  # a 0 in the shape must not hide it
        raise ValueError(f"{name!r:.60} has a shape beyond all memory")
    return dtype, shape, count * size


def _taken(data: bytearray, position: int, shape: list[int], dtype: torch.dtype, name: str) -> Tensor:
    """Return a tensor, on the same memory if its position suits the type's alignment."""
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=dtype)
    aligned, kind = position % dtype.itemsize == 0, _NUMPY.get(dtype)
    if aligned and kind:  # takes a third of the time of torch's own way
        return torch.from_numpy(np.ndarray(shape, kind, data, position))
    piece = torch.frombuffer(data, dtype=torch.uint8, count=count * dtype.itemsize, offset=position)
    if dtype == torch.bool and (piece > 1).any():  # torch accepts any byte as a bool and computes with it
        raise ValueError(f"{name!r:.60} is of type bool and holds other bytes than 0 and 1")
    return (piece if aligned else piece.clone()).view(dtype).view(shape)


def _as_bytes(tensor: Tensor) -> np.ndarray:
    flat: np.ndarray = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat
