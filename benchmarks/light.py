"""Clients of a `StreamServer` that cost next to nothing: hundreds in one process, on sockets, without the gRPC library.

Each has its own connection and follows the protocol, HTTP/2 and TLS included. The caller supplies the answers, of at
most one HTTP/2 frame, so that the flow-control windows are never full.
"""

import selectors
import socket
import ssl
from collections.abc import Callable

from fedshare._proto.stream_pb2 import Chunk, Down, Hello, Up
from fedshare.transport.stream.frames import PROTOCOL, Assembly

METHOD = "/fedshare.v1.Stream/Connect"  # the same in all versions
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7  # HTTP/2's frames
_ACK = 0x1
_END_HEADERS = 0x4
_WINDOW, _LARGEST = (1 << 31) - 1, 1 << 14
_READ = 1 << 18  # bytes

Answer = Callable[[int, bytearray], bytes]  # called with the client and a message body


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def _beginning(authority: str, scheme: str) -> bytes:
    """Return the bytes that open a connection and the call on it: all that a server receives before the greeting."""
    headers = {":method": "POST", ":scheme": scheme, ":path": METHOD, ":authority": authority}
    headers |= {"te": "trailers", "content-type": "application/grpc"}
    written = b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in headers.items())
    settings = (2).to_bytes(2, "big") + bytes(4) + (4).to_bytes(2, "big") + _WINDOW.to_bytes(4, "big")
    window = (_WINDOW - 65535).to_bytes(4, "big")
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(_SETTINGS, 0, 0, settings)  # no server push, and no limit of the window
        + frame(8, 0, 0, window)
        + frame(_HEADERS, _END_HEADERS, 1, written)
    )


class Light:
    """One client, connected and greeted."""

    def __init__(
        self, address: str, id: int, version: str, answer: Answer, context: ssl.SSLContext | None = None
    ) -> None:
        self.id, self._answer = id, answer
        host, _, port = address.rpartition(":")
        plain = socket.create_connection((host, int(port)), 60)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname=host) if context else plain
        self._held, self._message, self._assembly = b"", b"", Assembly()
        self.socket.sendall(_beginning(address, "https" if context else "http"))
        self.send(Up(hello=Hello(protocol=PROTOCOL, client=id, version=version)))
        self.socket.setblocking(False)

    def send(self, up: Up) -> None:
        data = up.SerializeToString()
        data = b"\0" + len(data).to_bytes(4, "big") + data
        assert len(data) <= _LARGEST, "too large for a light client"
        self._out(frame(_DATA, 0, 1, data))

    def _out(self, data: bytes) -> None:
        """Send data small enough to fit into the socket's buffer."""
        assert self.socket.send(data) == len(data)

    def read(self) -> bool:
        """Read and answer what has arrived; return False if the connection has ended."""
        while True:
            try:
                data = self.socket.recv(_READ)
            except (BlockingIOError, ssl.SSLWantReadError):
                return True
            except OSError:
                return False
            if not data or not self._taken(self._held + data):
                return False
            if not isinstance(self.socket, ssl.SSLSocket):
                return True

    def _taken(self, data: bytes) -> bool:
        place = 0
        while len(data) >= place + 9:
            end = place + 9 + int.from_bytes(data[place : place + 3], "big")
            if len(data) < end:
                break
            kind, flags, payload = data[place + 3], data[place + 4], data[place + 9 : end]
            place = end
            if kind == _DATA:
                self._message += payload
                self._messages()
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._out(frame(kind, _ACK, 0, payload if kind == _PING else b""))
            if kind in (_RESET, _GOAWAY) or (kind in (_DATA, _HEADERS) and flags & 0x1):
                return False
        self._held = data[place:]
        return True

    def _messages(self) -> None:
        while len(self._message) >= 5:
            end = 5 + int.from_bytes(self._message[1:5], "big")
            if len(self._message) < end:
                return
            down, self._message = Down.FromString(self._message[5:end]), self._message[end:]
            if down.WhichOneof("kind") == "chunk" and (whole := self._assembly.add(down.chunk)):
                body = self._answer(self.id, whole[1])
                self.send(Up(chunk=Chunk(message=whole[0], size=len(body), data=body)))


class Crowd:
    """A set of light clients; `step` lets them answer."""

    def __init__(self) -> None:
        self._ready = selectors.DefaultSelector()
        self.lost: list[int] = []  # clients whose connection has ended

    def add(self, client: Light) -> None:
        self._ready.register(client.socket, selectors.EVENT_READ, client)

    def step(self, timeout: float) -> None:
        for key, _ in self._ready.select(timeout):
            if not key.data.read():
                self.lost.append(key.data.id)
                self._ready.unregister(key.fileobj)
                key.data.socket.close()
