"""What crosses between our two apps, as Flower's records: one of bytes, and one flat array."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

_NAME = "fedshare"
_TENSORS = "tensors"
_MADE = "_fedshare_made"

T = TypeVar("T")


def wrap(head: bytes, tensors: bytes | bytearray = b"") -> RecordDict:
    """Records that nobody changes afterwards: many messages may have them, and they are encoded `once`."""
    content = RecordDict({_NAME: ConfigRecord({"": head})})
    if tensors:  # one array, not one a tensor: on Flower's own way each is several requests
        flat = Array(dtype="uint8", shape=(len(tensors),), stype="raw", data=bytes(tensors))
        content[_TENSORS] = ArrayRecord({"": flat})
    vars(content)[_MADE] = None
    return content


def once(content: RecordDict, make: Callable[[RecordDict], T]) -> T:
    """Return what `make`, always the same function, makes of records; of those that `wrap` has made it is kept.

    Not a method of a subclass: Flower sends an object's class name, and accepts the names of its own classes only.
    """
    kept: dict[str, Any] = vars(content)
    if _MADE not in kept:
        return make(content)
    if kept[_MADE] is None:
        kept[_MADE] = make(content)
    return cast(T, kept[_MADE])


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
