"""What crosses between our two apps, as Flower's records: one of bytes, and one flat array."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

_NAME = "fedshare"
_TENSORS = "tensors"

T = TypeVar("T")


class Shared(RecordDict):
    """Records that nobody changes any more: many messages may have them, and they are written down once."""

    def once(self, make: Callable[[RecordDict], T]) -> T:
        """What `make`, always the same function, makes of them."""
        kept: dict[str, Any] = self.__dict__
        if "_made" not in kept:
            kept["_made"] = make(self)
        return cast(T, kept["_made"])


def wrap(head: bytes, tensors: bytes | bytearray = b"") -> Shared:
    content = Shared({_NAME: ConfigRecord({"": head})})
    if tensors:  # one array, not one a tensor: on Flower's own way each is several requests
        flat = Array(dtype="uint8", shape=(len(tensors),), stype="raw", data=bytes(tensors))
        content[_TENSORS] = ArrayRecord({"": flat})
    return content


def unwrap(content: RecordDict) -> tuple[bytes, bytes]:
    """Head and tensors. Raises ValueError where something else was sent."""
    record, tensors = content.get(_NAME), content.get(_TENSORS)
    if not isinstance(record, ConfigRecord) or not isinstance(head := record.get(""), bytes):
        raise ValueError("a message without fedshare's record")
    if tensors is None:
        return head, b""
    if not isinstance(tensors, ArrayRecord) or "" not in tensors:
        raise ValueError("a message whose tensors are not one array")
    return head, tensors[""].data
