from fedshare._proto import stream_pb2 as _stream_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MeshFrame(_message.Message):
    __slots__ = ("hello", "chunk", "nothing", "propose", "accept", "too_late", "closed", "leave", "finished", "waiting", "meeting", "refusal")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    NOTHING_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    TOO_LATE_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    MEETING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    hello: MeshHello
    chunk: _stream_pb2.Chunk
    nothing: int
    propose: Propose
    accept: Accept
    too_late: TooLate
    closed: Closed
    leave: LastRound
    finished: Finished
    waiting: Waiting
    meeting: Meeting
    refusal: _stream_pb2.Refusal
    def __init__(self, hello: _Optional[_Union[MeshHello, _Mapping]] = ..., chunk: _Optional[_Union[_stream_pb2.Chunk, _Mapping]] = ..., nothing: _Optional[int] = ..., propose: _Optional[_Union[Propose, _Mapping]] = ..., accept: _Optional[_Union[Accept, _Mapping]] = ..., too_late: _Optional[_Union[TooLate, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., leave: _Optional[_Union[LastRound, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., meeting: _Optional[_Union[Meeting, _Mapping]] = ..., refusal: _Optional[_Union[_stream_pb2.Refusal, _Mapping]] = ...) -> None: ...

class MeshHello(_message.Message):
    __slots__ = ("protocol", "peer", "version", "run", "entered", "begun", "opened", "until", "lacks")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LACKS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    peer: int
    version: str
    run: bytes
    entered: int
    begun: bool
    opened: _containers.RepeatedScalarFieldContainer[int]
    until: int
    lacks: int
    def __init__(self, protocol: _Optional[int] = ..., peer: _Optional[int] = ..., version: _Optional[str] = ..., run: _Optional[bytes] = ..., entered: _Optional[int] = ..., begun: bool = ..., opened: _Optional[_Iterable[int]] = ..., until: _Optional[int] = ..., lacks: _Optional[int] = ...) -> None: ...

class Propose(_message.Message):
    __slots__ = ("round", "entered", "skip")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    round: int
    entered: int
    skip: bool
    def __init__(self, round: _Optional[int] = ..., entered: _Optional[int] = ..., skip: bool = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class TooLate(_message.Message):
    __slots__ = ("round", "entered")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    round: int
    entered: int
    def __init__(self, round: _Optional[int] = ..., entered: _Optional[int] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("opened", "until")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    opened: int
    until: int
    def __init__(self, opened: _Optional[int] = ..., until: _Optional[int] = ...) -> None: ...

class LastRound(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Waiting(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Meeting(_message.Message):
    __slots__ = ("run", "peers")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    peers: _containers.RepeatedCompositeFieldContainer[Whereabouts]
    def __init__(self, run: _Optional[bytes] = ..., peers: _Optional[_Iterable[_Union[Whereabouts, _Mapping]]] = ...) -> None: ...

class Whereabouts(_message.Message):
    __slots__ = ("peer", "address", "counter", "certificate", "signature")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    peer: int
    address: str
    counter: int
    certificate: bytes
    signature: bytes
    def __init__(self, peer: _Optional[int] = ..., address: _Optional[str] = ..., counter: _Optional[int] = ..., certificate: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MeshStatus(_message.Message):
    __slots__ = ("peer", "run", "version", "entered", "round_seconds", "links")
    PEER_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    ROUND_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    peer: int
    run: bytes
    version: str
    entered: int
    round_seconds: float
    links: _containers.RepeatedCompositeFieldContainer[LinkStatus]
    def __init__(self, peer: _Optional[int] = ..., run: _Optional[bytes] = ..., version: _Optional[str] = ..., entered: _Optional[int] = ..., round_seconds: _Optional[float] = ..., links: _Optional[_Iterable[_Union[LinkStatus, _Mapping]]] = ...) -> None: ...

class LinkStatus(_message.Message):
    __slots__ = ("peer", "connected", "opened", "entered", "sent", "received", "address", "said")
    PEER_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    peer: int
    connected: bool
    opened: int
    entered: int
    sent: int
    received: int
    address: str
    said: str
    def __init__(self, peer: _Optional[int] = ..., connected: bool = ..., opened: _Optional[int] = ..., entered: _Optional[int] = ..., sent: _Optional[int] = ..., received: _Optional[int] = ..., address: _Optional[str] = ..., said: _Optional[str] = ...) -> None: ...
