"""What both ends of a relay's stream agree on. `protos/fedshare/v1/relay.proto` says what the frames mean."""

from collections.abc import Iterator

from fedshare._proto.relay_pb2 import Piece
from fedshare.transport.stream.frames import CHUNK, FrameError

PROTOCOL = 1
SERVICE = "fedshare.v1.Relay"
CONNECT, FETCH, STORE, STATUS = (f"/{SERVICE}/{name}" for name in ("Connect", "Fetch", "Store", "Status"))
LATE, NOT_NOW, NEVER = 1, 2, 3  # why something is not taken
MESSAGE = 0  # the kind of a message of a round on the wire, so that it takes no byte


def pieces(of: int, data: bytes) -> Iterator[Piece]:
    """Yield `data`, which is not empty, in frames."""
    for start in range(0, len(data), CHUNK):
        yield Piece(of=of, size=0 if start else len(data), data=data[start : start + CHUNK])


class Whole:
    """Something long that arrives in pieces."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of, self._size, self._data = 0, 0, bytearray()

    def begin(self, of: int, size: int, data: bytes) -> bytes | None:
        """Return all of it if these are all its bytes. Raises FrameError."""
        if size > self._most:
            raise FrameError(f"something of {size} bytes; at most {self._most} are taken")
        # Room is taken as bytes arrive, not when they are announced.
        self._of, self._size, self._data = of, size, bytearray()
        return self.add(of, data)

    def add(self, of: int, data: bytes) -> bytes | None:
        if not self._size or of != self._of:
            raise FrameError("a piece of something that was not begun")
        if not data or len(self._data) + len(data) > self._size:
            raise FrameError(f"pieces of other sizes than the {self._size} bytes that were announced")
        self._data += data
        if len(self._data) < self._size:
            return None
        whole, self._size, self._data = bytes(self._data), 0, bytearray()
        return whole
