"""A peer's upload as the body of its message: without names and shapes where they are the expected ones."""

import struct
from collections.abc import Mapping

import numpy as np
import torch

from fedshare.forms.wire import Limits, from_bytes, to_bytes
from fedshare.payload import Payload
from fedshare.tensors import Tensors

_NAMED, _BARE = b"\0", b"\1"  # the first byte: how the rest is written
_METRICS = "examples", "train_loss"  # all or the first of them, in a bare body


class Bodies:
    """`expected`: the tensors of an upload as it is sent, equal on all peers."""

    def __init__(self, expected: Mapping[str, Tensors]) -> None:
        self._expected = {group: dict(tensors) for group, tensors in expected.items()}
        self._size = sum(tensor.nbytes for _, _, tensor in self._walk(self._expected))

    def encode(self, upload: Payload) -> bytes:
        names = tuple(sorted(upload.metrics))
        if not self._is_expected(upload.tensors) or names != _METRICS[: len(names)]:
            return _NAMED + to_bytes(upload)
        tensors = (t.contiguous().cpu().reshape(-1).view(torch.uint8) for _, _, t in self._walk(upload.tensors))
        data = b"".join(tensor.numpy().tobytes() for tensor in tensors)
        return _BARE + data + b"".join(struct.pack("<d", upload.metrics[name]) for name in names)

    def decode(self, body: bytes, limits: Limits) -> Payload:
        """Raises ValueError on anything that `encode` did not make, or beyond `limits`."""
        if body[:1] == _NAMED:
            return from_bytes(body[1:], limits)
        counted, rest = divmod(len(body) - 1 - self._size, 8)
        if body[:1] != _BARE or rest or not 0 <= counted <= len(_METRICS):
            raise ValueError("it is no upload of this run's form")
        tensors: dict[str, Tensors] = {group: {} for group in self._expected}
        at = 1
        for group, name, like in self._walk(self._expected):
            data = np.frombuffer(body, np.uint8, like.nbytes, at).copy()
            tensors[group][name] = torch.from_numpy(data).view(like.dtype).reshape(like.shape)
            at += like.nbytes
        values = struct.unpack_from(f"<{counted}d", body, at)
        return Payload(tensors, dict(zip(_METRICS, values, strict=False)))

    def _is_expected(self, tensors: Mapping[str, Tensors]) -> bool:
        found, wanted = [*self._walk(tensors)], [*self._walk(self._expected)]
        # A bool takes a whole byte, whose other values must be checked; tensors without bytes have no view as bytes.
        return len(found) == len(wanted) and all(
            (a, b, c.dtype, c.shape) == (d, e, f.dtype, f.shape) and c.nbytes and c.dtype != torch.bool
            for (a, b, c), (d, e, f) in zip(found, wanted, strict=True)
        )

    @staticmethod
    def _walk(tensors: Mapping[str, Tensors]) -> list[tuple[str, str, torch.Tensor]]:
        return [(group, name, tensor) for group, named in tensors.items() for name, tensor in named.items()]
