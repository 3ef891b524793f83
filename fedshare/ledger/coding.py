"""Codings of a projected gradient for sending, and the integers that everyone adds up for it."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedshare.ledger import codes


class Coding(Protocol):
    name: str  # in the manifest
    bits: int  # fractional bits of the integers
    together: int  # values are encoded in multiples of this number

    def encode(self, values: Tensor, threshold: ArrayLike = 0.5) -> Tensor:
        """Return what is sent for each value. `threshold` is as in `fedshare.ledger.codes.encode`."""
        ...

    def decode(self, sent: Tensor) -> Tensor:
        """Return the values, float64; NaN for no value."""
        ...

    def flaw(self, sent: Tensor) -> str | None:
        """Return why codes of the right type are invalid; None if `encode` may return them."""
        ...

    def integers(self, said: bytes) -> NDArray[np.int64]:
        """Return the integers for the bytes sent; 0 for no value."""
        ...


class Byte:
    """A sign and a magnitude in eight steps per octave (`fedshare.ledger.codes`)."""

    name, bits, together = f"byte/{codes.DIGEST}", 13, 1

    def encode(self, values: Tensor, threshold: ArrayLike = 0.5) -> Tensor:
        return torch.from_numpy(codes.encode(values.numpy(), threshold))

    def decode(self, sent: Tensor) -> Tensor:
        return torch.from_numpy(codes.VALUES[sent.numpy()])

    def flaw(self, sent: Tensor) -> str | None:
        return _flaw(True, bool((sent == codes.NOTHING).all()))  # every byte is a code

    def integers(self, said: bytes) -> NDArray[np.int64]:
        return codes.INTEGERS[np.frombuffer(said, dtype=np.uint8)]


class Sign(Byte):
    """A byte with only a sign: 1, -1, 0 or no value."""

    def encode(self, values: Tensor, threshold: ArrayLike = 0.5) -> Tensor:
        return torch.from_numpy(codes.encode_sign(values.numpy()))

    def flaw(self, sent: Tensor) -> str | None:
        signs = torch.tensor([codes.ONE, codes.ONE | codes.NEGATIVE, codes.ZERO, codes.NOTHING], dtype=torch.uint8)
        return _flaw(bool(torch.isin(sent, signs).all()), bool((sent == codes.NOTHING).all()))


class Float:
    """Four bytes, exact to a millionth, up to 1024: the reference for a byte's precision."""

    name, bits, together = "int32/2**-20", 20, 1
    _nothing, _most = np.iinfo(np.int32).min, 2**30

    def encode(self, values: Tensor, threshold: ArrayLike = 0.5) -> Tensor:
        scaled = (values.double() * 2**self.bits).clamp(-self._most, self._most).round()
        return scaled.nan_to_num(self._nothing).where(values.isfinite(), self._nothing).to(torch.int32)

    def decode(self, sent: Tensor) -> Tensor:
        return torch.where(sent == self._nothing, torch.nan, sent.double() * 2.0**-self.bits)

    def flaw(self, sent: Tensor) -> str | None:
        nothing = sent == self._nothing
        return _flaw(bool((nothing | (sent.abs() <= self._most)).all()), bool(nothing.all()))

    def integers(self, said: bytes) -> NDArray[np.int64]:
        whole = np.frombuffer(said, dtype="<i4").astype(np.int64)
        return np.where(whole == self._nothing, 0, whole)


class Bit:
    """A bit: 1 or -1, eight in a byte.

    As in FeedSign (Cai, Chen and Zhu 2025, arXiv 2501.17610), but for a direction of one's own. It has no code for a
    value that is not finite, which counts as 1.
    """

    name, bits, together = "bit/1", 0, 8

    def encode(self, values: Tensor, threshold: ArrayLike = 0.5) -> Tensor:
        return torch.from_numpy(np.packbits(~(values.numpy() < 0), bitorder="little"))

    def decode(self, sent: Tensor) -> Tensor:
        return torch.from_numpy(self.integers(sent.numpy().tobytes())).double()

    def flaw(self, sent: Tensor) -> str | None:
        return None  # every byte is eight bits

    def integers(self, said: bytes) -> NDArray[np.int64]:
        return np.unpackbits(np.frombuffer(said, dtype=np.uint8), bitorder="little").astype(np.int64) * 2 - 1


def _flaw(known: bool, nothing: bool) -> str | None:
    if nothing:
        return "none of its losses is finite"
    return None if known else "it holds codes that are never sent"
