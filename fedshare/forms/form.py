"""The form of an upload: encoded by the client, decoded and validated by the server."""

from dataclasses import dataclass
from typing import Protocol

from fedshare.payload import Payload
from fedshare.tensors import Tensors


class Form(Protocol):
    """Clients encode what `Strategy.train` returns; the server decodes it before `Strategy.aggregate` sees it."""

    def encode(self, upload: Payload) -> Payload:
        """Return `upload` in the form in which it is sent."""
        ...

    def decode(self, sent: Payload, expected: dict[str, Tensors]) -> Payload:
        """Return the upload for `Strategy.aggregate`; `expected` has the shapes and types of the result.

        `sent` is untrusted. Raises ValueError, saying what is wrong, on anything that `encode` never returns.
        """
        ...


@dataclass(frozen=True)
class Dense:
    """Tensors are sent unchanged."""

    def encode(self, upload: Payload) -> Payload:
        return upload

    def decode(self, sent: Payload, expected: dict[str, Tensors]) -> Payload:
        return sent
