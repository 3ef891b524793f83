"""One number per direction, sent as a code: one-byte's uploads."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedshare.payload import Payload
from fedshare.tensors import Tensors


class Coding(Protocol):
    def encode(self, values: Tensor) -> Tensor:
        """Return the code of each value."""
        ...

    def flaw(self, sent: Tensor) -> str | None:
        """Return why `sent`, which has the type of codes, is invalid; None if it is valid."""
        ...


@dataclass(frozen=True)
class Codes:
    """Only codes of projected gradients are sent, and they stay codes: they are summed as integers."""

    coding: Coding

    def encode(self, upload: Payload) -> Payload:
        return Payload({"codes": {"codes": self.coding.encode(upload.tensors["update"]["projected"])}}, upload.metrics)

    def decode(self, sent: Payload, expected: dict[str, Tensors]) -> Payload:
        group, like = sent.tensors.get("codes"), expected["codes"]["codes"]
        codes = group.get("codes") if isinstance(group, dict) else None
        form = (like.layout, like.device, like.dtype, like.shape)
        fits = isinstance(codes, Tensor) and (codes.layout, codes.device, codes.dtype, codes.shape) == form
        if fits and (wrong := self.coding.flaw(codes)):  # type: ignore[arg-type]  # a wrong type is found later
            raise ValueError(wrong)
        return sent
