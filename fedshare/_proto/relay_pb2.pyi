from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PeerUp(_message.Message):
    __slots__ = ("hello", "say", "piece")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SAY_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    say: Saying
    piece: Piece
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., say: _Optional[_Union[Saying, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ...) -> None: ...

class RelayDown(_message.Message):
    __slots__ = ("welcome", "acknowledged", "not_taken", "commit", "waits", "refusal")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    NOT_TAKEN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    welcome: RelayWelcome
    acknowledged: Acknowledged
    not_taken: NotTaken
    commit: Piece
    waits: str
    refusal: str
    def __init__(self, welcome: _Optional[_Union[RelayWelcome, _Mapping]] = ..., acknowledged: _Optional[_Union[Acknowledged, _Mapping]] = ..., not_taken: _Optional[_Union[NotTaken, _Mapping]] = ..., commit: _Optional[_Union[Piece, _Mapping]] = ..., waits: _Optional[str] = ..., refusal: _Optional[str] = ...) -> None: ...

class PeerHello(_message.Message):
    __slots__ = ("protocol", "peer", "version", "run", "key", "known", "seen", "nonce")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    peer: int
    version: str
    run: bytes
    key: bytes
    known: int
    seen: int
    nonce: bytes
    def __init__(self, protocol: _Optional[int] = ..., peer: _Optional[int] = ..., version: _Optional[str] = ..., run: _Optional[bytes] = ..., key: _Optional[bytes] = ..., known: _Optional[int] = ..., seen: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class RelayWelcome(_message.Message):
    __slots__ = ("key", "rounds", "head", "status", "known", "known_signed", "said", "message")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    KNOWN_SIGNED_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    rounds: int
    head: bytes
    status: bytes
    known: bytes
    known_signed: bytes
    said: int
    message: int
    def __init__(self, key: _Optional[bytes] = ..., rounds: _Optional[int] = ..., head: _Optional[bytes] = ..., status: _Optional[bytes] = ..., known: _Optional[bytes] = ..., known_signed: _Optional[bytes] = ..., said: _Optional[int] = ..., message: _Optional[int] = ...) -> None: ...

class Saying(_message.Message):
    __slots__ = ("number", "round", "kind", "signature", "body", "size")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    number: int
    round: int
    kind: int
    signature: bytes
    body: bytes
    size: int
    def __init__(self, number: _Optional[int] = ..., round: _Optional[int] = ..., kind: _Optional[int] = ..., signature: _Optional[bytes] = ..., body: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("of", "size", "data", "snapshot")
    OF_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    of: int
    size: int
    data: bytes
    snapshot: SnapshotName
    def __init__(self, of: _Optional[int] = ..., size: _Optional[int] = ..., data: _Optional[bytes] = ..., snapshot: _Optional[_Union[SnapshotName, _Mapping]] = ...) -> None: ...

class Acknowledged(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class NotTaken(_message.Message):
    __slots__ = ("number", "why", "reason")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    number: int
    why: int
    reason: str
    def __init__(self, number: _Optional[int] = ..., why: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SnapshotName(_message.Message):
    __slots__ = ("round", "digest", "size")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    round: int
    digest: bytes
    size: int
    def __init__(self, round: _Optional[int] = ..., digest: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class SnapshotStored(_message.Message):
    __slots__ = ("refusal",)
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    refusal: str
    def __init__(self, refusal: _Optional[str] = ...) -> None: ...

class StatusAsked(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusSaid(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...
