"""Everything of flwr that is not in its public interface, and where its versions differ: 1.39 to 1.42 are known.

The one place where its next release may break us.
"""

import gc
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from traceback import walk_stack
from types import FrameType
from typing import Any, TypeVar

from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.common.serde import metric_record_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo as NodeInfo
from flwr.proto.recorddict_pb2 import ArrayRecord as ArrayRecordProto
from flwr.proto.recorddict_pb2 import ConfigRecord as ConfigRecordProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity
from packaging.version import Version

SERVER_NODE = 1  # Flower's number of the server
RAISED = 2  # Flower's error code of a ClientApp that raised
UNAVAILABLE = 5  # and of a node that is not there
LEFT = 103  # ours: of a client that ends with this answer

# Where Flower's own strategies wait for nodes: module, function, and its local that says how many.
_WAITS = {
    ("flwr.serverapp.strategy.strategy_utils", "sample_nodes"): "min_available_nodes",
    ("flwr.server.client_manager", "wait_for"): "num_clients",
}
_A_DAY = 86400  # seconds; the timeout of a `wait_for` that was given none

T = TypeVar("T")


def why_no_grpc_fleet() -> str:
    """In one line, why Flower's own fleet does not speak gRPC; "" where it does."""
    version = metadata.version("flwr")
    if Version(version) < Version("1.40"):
        return ""
    return f"flwr {version}: its SuperNodes speak HTTP; 1.39 is the last whose SuperNodes speak gRPC"


def enter_run(run_id: int = 1) -> Run:
    """Be, in this process, the server of a run: Flower's messages ask who makes them."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE, 1
    return Run.create_empty(run_id)


def names_of(grid: Grid) -> dict[int, str]:
    """The names under which nodes are registered."""
    return {node.node_id: node.name for node in grid.get_nodes()}


def named(node: int, name: str) -> NodeInfo:
    return NodeInfo(node_id=node, name=name)


def number(message: Message, id: str) -> None:
    """Give a message its id, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = id


def asked(content: RecordDict, node: int, type: str, group: str) -> Message:
    """An instruction, as `Message` makes it."""
    run, server, task = TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id
    about = Metadata(run, "", server, node, "", group, time.time(), DEFAULT_TTL, type, task)
    return received(about, content, None)


def received(metadata: Metadata, content: RecordDict | None, error: Error | None) -> Message:
    """A message as its receiver gets it."""
    # Not by its constructor, which is made for many ways and checks each.
    message = Message.__new__(Message)
    metadata.delivered_at = ""
    message.__dict__.update(_metadata=metadata, _content=content, _error=error)
    return message


def records_to_bytes(records: RecordDict) -> bytes:
    data: bytes = recorddict_to_proto(records).SerializeToString()
    return data


def records_from_bytes(data: bytes) -> RecordDict:
    records = RecordDict()
    values = records.__dict__["_data"]
    for item in RecordDictProto.FromString(data).items:
        if (kind := item.WhichOneof("value")) not in _READERS:
            raise ValueError(f"a record of the unknown kind {kind}")
        values[item.key] = _READERS[kind](getattr(item, kind))
    return records


def _array_record(proto: ArrayRecordProto) -> ArrayRecord:
    record = ArrayRecord()
    values = record.__dict__["_data"]
    for item in proto.items:
        values[item.key] = array = Array.__new__(Array)
        of = item.value
        array.__dict__.update(dtype=of.dtype, shape=tuple(of.shape), stype=of.stype, data=of.data)
    return record


def _config_record(proto: ConfigRecordProto) -> ConfigRecord:
    record = ConfigRecord()
    values = record.__dict__["_data"]
    for item in proto.items:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        values[item.key] = list(value.vals) if kind.endswith("_list") else value
    return record


# Flower's own readers make each array twice, and check each type that protobuf has given.
_READERS: dict[str, Callable[[Any], ArrayRecord | ConfigRecord | MetricRecord]] = {
    "array_record": _array_record,
    "config_record": _config_record,
    "metric_record": metric_record_from_proto,
}


def copied(message: Message) -> Message:
    """`message` as a network would hand it on: nothing that can be changed is shared, and the bytes of arrays are."""
    new = _twin(message)
    new.__dict__["_metadata"] = _twin(message.metadata)
    if message.has_content():
        new.__dict__["_content"] = _copied_records(message.content)
    return new


def _copied_records(records: RecordDict) -> RecordDict:
    # Not by the public interface, which checks the type of each value again: that takes several times as long.
    new = records.copy()
    held = new.__dict__["_data"]
    for name, record in held.items():
        held[name] = record.copy()
        values = held[name].__dict__["_data"]
        for key, value in values.items():
            if isinstance(record, ArrayRecord):
                values[key] = _copied_array(value)
            elif isinstance(value, list):
                values[key] = list(value)
    return new


def _copied_array(array: Array) -> Array:
    new = Array.__new__(Array)
    new.__dict__.update(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=bytes(array.data))
    return new


def _twin(thing: T) -> T:
    """A shallow copy. copy.copy takes three times as long."""
    new = type(thing).__new__(type(thing))
    new.__dict__.update(thing.__dict__)
    return new


def awaited_nodes() -> int:
    """How many nodes Flower's own code waits for at this moment, with no deadline, in any thread; 0: it does not."""
    most = 0
    for newest in _newest_frames():
        for frame, _ in walk_stack(newest):
            name = _WAITS.get((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
            if name and (frame.f_locals.get("timeout") or _A_DAY) >= _A_DAY:
                most = max(most, frame.f_locals[name])
    return most


_LOOKING = threading.Lock()


def _newest_frames() -> list[FrameType]:
    """Return the newest frame of each thread, with the garbage collector off.

    CPython holds a lock as it lists them; a tensor that is collected then may wait for that lock forever (gh-106883).
    """
    with _LOOKING:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return list(sys._current_frames().values())
        finally:
            if enabled:
                gc.enable()
