from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("group", "name", "dtype", "shape")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    group: str
    name: str
    dtype: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group: _Optional[str] = ..., name: _Optional[str] = ..., dtype: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Leaf(_message.Message):
    __slots__ = ("path", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: bytes
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("round", "base", "keep", "run", "terms", "download")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_FIELD_NUMBER: _ClassVar[int]
    round: int
    base: int
    keep: int
    run: bytes
    terms: bytes
    download: Contents
    def __init__(self, round: _Optional[int] = ..., base: _Optional[int] = ..., keep: _Optional[int] = ..., run: _Optional[bytes] = ..., terms: _Optional[bytes] = ..., download: _Optional[_Union[Contents, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("upload", "memory")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    upload: Contents
    memory: _containers.RepeatedCompositeFieldContainer[Leaf]
    def __init__(self, upload: _Optional[_Union[Contents, _Mapping]] = ..., memory: _Optional[_Iterable[_Union[Leaf, _Mapping]]] = ...) -> None: ...

class Contents(_message.Message):
    __slots__ = ("layout", "empty_groups", "metrics")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    EMPTY_GROUPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    layout: _containers.RepeatedCompositeFieldContainer[Tensor]
    empty_groups: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    def __init__(self, layout: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., empty_groups: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("version", "config_sha256", "initial_sha256", "weights_sha256")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    INITIAL_SHA256_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    version: str
    config_sha256: bytes
    initial_sha256: bytes
    weights_sha256: bytes
    def __init__(self, version: _Optional[str] = ..., config_sha256: _Optional[bytes] = ..., initial_sha256: _Optional[bytes] = ..., weights_sha256: _Optional[bytes] = ...) -> None: ...

class Attendance(_message.Message):
    __slots__ = ("client", "examples", "host", "device", "needs_initial", "tests", "validation")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NEEDS_INITIAL_FIELD_NUMBER: _ClassVar[int]
    TESTS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    client: int
    examples: int
    host: str
    device: str
    needs_initial: bool
    tests: int
    validation: int
    def __init__(self, client: _Optional[int] = ..., examples: _Optional[int] = ..., host: _Optional[str] = ..., device: _Optional[str] = ..., needs_initial: bool = ..., tests: _Optional[int] = ..., validation: _Optional[int] = ...) -> None: ...

class Initial(_message.Message):
    __slots__ = ("invitation", "run", "model")
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    invitation: Invitation
    run: bytes
    model: Contents
    def __init__(self, invitation: _Optional[_Union[Invitation, _Mapping]] = ..., run: _Optional[bytes] = ..., model: _Optional[_Union[Contents, _Mapping]] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("type", "group", "content", "arrays", "error_code", "error_reason")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    type: str
    group: str
    content: bytes
    arrays: _containers.RepeatedScalarFieldContainer[int]
    error_code: int
    error_reason: str
    def __init__(self, type: _Optional[str] = ..., group: _Optional[str] = ..., content: _Optional[bytes] = ..., arrays: _Optional[_Iterable[int]] = ..., error_code: _Optional[int] = ..., error_reason: _Optional[str] = ...) -> None: ...
