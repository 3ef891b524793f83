"""What crosses between our two apps, as Flower's records: one of bytes, and one flat array."""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

_NAME = "fedshare"
_TENSORS = "tensors"


def wrap(head: bytes, tensors: bytes | bytearray = b"") -> RecordDict:
    content = RecordDict({_NAME: ConfigRecord({"": head})})
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
