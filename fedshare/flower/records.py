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
    try:
        head = content.config_records[_NAME][""]
        tensors = content.array_records[_TENSORS][""].data if _TENSORS in content.array_records else b""
    except KeyError as error:
        raise ValueError(f"a message without fedshare's record {error}") from error
    if not isinstance(head, bytes):
        raise ValueError("a message whose fedshare record is not made of bytes")
    return head, tensors
