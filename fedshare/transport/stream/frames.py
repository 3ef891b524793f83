"""Messages cut into frames, and put together again. `protos/fedshare/v1/stream.proto` says what the frames mean."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fedshare._proto.stream_pb2 import Chunk

PROTOCOL = 1  # of the stream; the two ends must have the same
CHUNK = 1 << 19  # bytes of a message in one frame; a link that takes longer than a heartbeat for it counts as dead
FRAME_LIMIT = CHUNK + 4096
MESSAGE_LIMIT = 8 << 30  # bytes of a message
HELLO_LIMIT = 4096  # bytes of a greeting

M = TypeVar("M", bound=Message)
Buffer = bytes | bytearray | memoryview


class FrameError(Exception):
    """The other end does not keep to the protocol. The message is one line."""


def filled(buffers: Sequence[Buffer]) -> Sequence[Buffer]:
    """The buffers of a message. Raises ValueError on an empty one: it would have no first chunk."""
    if not any(buffers):
        raise ValueError("an empty message cannot be sent")
    return buffers


def chunks(number: int, buffers: Sequence[Buffer]) -> Iterator[Chunk]:
    """The frames of message `number`, whose bytes are those of `buffers` one after the other.

    Made as they are asked for: a message of gigabytes is never copied as a whole.
    """
    size = sum(len(buffer) for buffer in buffers)
    if size <= CHUNK:
        yield Chunk(message=number, size=size, data=b"".join(buffers))
        return
    first, rest, room = True, list[bytes](), CHUNK
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            piece, view = view[:room], view[room:]
            rest.append(bytes(piece))
            room -= len(piece)
            if not room:
                yield Chunk(message=number, size=size if first else 0, data=b"".join(rest))
                first, rest, room = False, [], CHUNK
    if rest:
        yield Chunk(message=number, size=size if first else 0, data=b"".join(rest))


class Assembly:
    """The message that is arriving. A first chunk begins it anew: the sender has been cut off, or has given it up."""

    def __init__(self, limit: int = MESSAGE_LIMIT) -> None:
        self._limit = limit
        self._number, self._size, self._data = 0, 0, bytearray()

    def add(self, chunk: Chunk, limit: int | None = None) -> tuple[int, bytearray] | None:
        """The message's number and its bytes, where `chunk` was its last. Raises FrameError.

        `limit`: the bytes that this message may have.
        """
        if chunk.size:
            most = self._limit if limit is None else limit
            if chunk.size > most:
                raise FrameError(f"a message of {chunk.size} bytes; at most {most} are taken")
            # Room is taken as bytes arrive, not when they are announced: a lie costs the liar's bytes, not our memory.
            self._number, self._size, self._data = chunk.message, chunk.size, bytearray()
        elif chunk.message != self._number or not self._size:
            raise FrameError(f"a chunk of message {chunk.message}, whose first was never sent")
        if len(self._data) + len(chunk.data) > self._size:
            raise FrameError(f"message {chunk.message} is longer than the {self._size} bytes it was said to have")
        self._data += chunk.data
        if len(self._data) < self._size:
            return None
        whole = self._number, self._data
        self._number, self._size, self._data = 0, 0, bytearray()
        return whole


def parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise FrameError(f"{len(data)} bytes that are no frame of fedshare.v1") from None


def greeting(kind: type[M], frame: object) -> M:
    """The frame of `kind`, parsed, that must be a greeting: its ``hello``. Raises FrameError where it is none."""
    if not isinstance(frame, bytes):
        raise FrameError("no greeting")
    if len(frame) > HELLO_LIMIT:
        raise FrameError(f"a greeting of {len(frame)} bytes; at most {HELLO_LIMIT} are taken")
    said = parse(kind, frame)
    if said.WhichOneof("kind") != "hello":
        raise FrameError("something else before its greeting")
    return said
