"""Flower messages on our stream: a small envelope, and behind it the bytes of large arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from fedshare._proto.payload_pb2 import Envelope
from fedshare.errors import first_line
from fedshare.transport.flower import private
from fedshare.transport.flower.records import once
from fedshare.transport.stream.frames import Buffer

LARGE = 4096  # bytes from which an array travels behind the envelope
_HEAD = 4  # bytes that say how long the envelope is


@dataclass(frozen=True)
class Letter:
    """What an envelope holds."""

    type: str
    group: str
    content: RecordDict | None
    error: Error | None


def seal(message: Message) -> list[Buffer]:
    """The bytes of `message`, in pieces."""
    about = message.metadata
    envelope = Envelope(type=about.message_type, group=about.group_id)
    large: list[Buffer] = []
    if message.has_error():
        envelope.error_code, envelope.error_reason = message.error.code, message.error.reason or ""
    else:
        content = message.content
        envelope.content, sizes, large = once(content, _written)
        envelope.arrays.extend(sizes)
    head = envelope.SerializeToString()
    return [len(head).to_bytes(_HEAD, "little") + head, *large]


def _written(content: RecordDict) -> tuple[bytes, list[int], list[Buffer]]:
    """Records without the bytes of large arrays, the sizes of these or 0, and these."""
    light, sizes, large = RecordDict(), list[int](), list[Buffer]()
    for name, record in content.items():
        light[name] = _lightened(record, sizes, large) if isinstance(record, ArrayRecord) else record
    return private.records_to_bytes(light), sizes, large


def unseal(body: bytearray, most: int | None = None) -> Letter:
    """What `seal` made this of. Raises ValueError, in one line, on other bytes, or an envelope of more than `most`."""
    start = _HEAD + int.from_bytes(body[:_HEAD], "little")
    try:
        if most is not None and start > most:  # read, it would take many times its bytes
            raise ValueError(f"its envelope wants {start} bytes; at most {most} are taken")
        if start > len(body):
            raise ValueError(f"its envelope wants {start} bytes, and it has {len(body)}")
        envelope = Envelope.FromString(bytes(memoryview(body)[_HEAD:start]))
        if start + sum(envelope.arrays) != len(body):
            raise ValueError(f"its arrays want {sum(envelope.arrays)} bytes, and it has {len(body) - start}")
        if envelope.error_code:
            return Letter(envelope.type, envelope.group, None, Error(envelope.error_code, envelope.error_reason))
        content = private.records_from_bytes(envelope.content)
        _fill(content, envelope.arrays, memoryview(body)[start:])
    except Exception as error:  # flwr's own reader raises many a type
        raise ValueError(f"a message that cannot be read: {first_line(error)}") from error
    return Letter(envelope.type, envelope.group, content, None)


def _lightened(record: ArrayRecord, sizes: list[int], large: list[Buffer]) -> ArrayRecord:
    light = {}
    for name, array in record.items():
        if len(array.data) < LARGE:
            sizes.append(0)
            light[name] = array
        else:
            sizes.append(len(array.data))
            large.append(array.data)
            light[name] = Array(array.dtype, array.shape, array.stype, b"")
    return ArrayRecord(light)


def _fill(content: RecordDict, sizes: Sequence[int], rest: memoryview) -> None:
    arrays = list(_arrays(content))
    if len(arrays) != len(sizes):
        raise ValueError(f"it holds {len(arrays)} arrays, and sizes of {len(sizes)}")
    for array, size in zip(arrays, sizes, strict=True):
        if size:
            array.data, rest = bytes(rest[:size]), rest[size:]


def _arrays(content: RecordDict) -> Iterator[Array]:
    for record in content.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()
